"""What a result depends on besides the code's input: versions, processor, commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "numpy": "numpy",
}


def environment() -> dict:
    """Versions, hardware and commit of the running program, ready for JSON.

    Names neither the machine nor a directory, so that it can be published.

    Returns:
        python, jax, jaxlib, flax, optax, orbax, numpy: version strings, None if absent;
        platform: "cpu", "gpu" or "tpu"; device_kind: JAX's name of the first device;
        num_devices: how many of them, over num_processes processes; cpu_model: the processor's name, None if unknown;
        conv_library: "onednn" if ``HWA_JAX_CONV`` chooses it for CPUs, else "xla";
        cpu_cores: logical cores this process may use; git_commit: 40 digits when the package
        runs from a checkout, with "-dirty" when its tracked files were changed, else None.

    Example:
        >>> sorted(environment())[:4]
        ['conv_library', 'cpu_cores', 'cpu_model', 'device_kind']
    """
    import jax

    from hwa_jax import onednn

    return {
        "python": platform.python_version(),
        **{name: _version(distribution) for name, distribution in _PACKAGES.items()},
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "cpu_model": _cpu_model(Path("/proc/cpuinfo")),
        "conv_library": "onednn" if onednn.switched_on() else "xla",
        "cpu_cores": _cpu_cores(),
        "git_commit": _git_commit(Path(__file__).resolve().parents[1]),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model(cpuinfo: Path) -> str | None:
    try:
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or None


def _cpu_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _git_commit(package: Path) -> str | None:
    # A wheel installed inside somebody's own repository is not a checkout: only a package
    # whose files git tracks speaks of that repository's commit.
    if not _git(package, "ls-files", "__init__.py"):
        return None
    commit = _git(package, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return commit + ("-dirty" if changed else "")


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
