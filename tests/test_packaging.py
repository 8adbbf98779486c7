"""The wheel, its declared requirements, the pinned versions and the citation file."""

import ast
import importlib.metadata
import json
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
EXTRAS = ("", "cuda", "tpu", "dev", "bench", "mnist1d", "onednn", "docs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Path of a wheel built from a copy, so that no build folder is left in the clone."""
    directory = tmp_path_factory.mktemp("build")
    source = directory / "source"
    shutil.copytree(ROOT / "hwa_jax", source / "hwa_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", directory, source)
    return next(directory.glob("hwa_jax-*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def imported(wheel, tmp_path_factory):
    """What a program elsewhere sees when the wheel's copy of hwa_jax is all it imports."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    pip("install", "--no-deps", "--target", elsewhere / "site", wheel)
    program = (
        f"import sys; sys.path.insert(0, {str(elsewhere / 'site')!r})\n"
        "import json, hwa_jax\n"
        "print(json.dumps([hwa_jax.__version__, hwa_jax.__file__, sorted(sys.modules)]))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=elsewhere, capture_output=True, text=True
    )
    assert output.returncode == 0, output.stderr
    version, path, modules = json.loads(output.stdout)
    return version, Path(path), set(modules), elsewhere


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, text=True)
    assert output.returncode == 0, output.stdout + output.stderr


def names_of(requirements):
    return {canonicalize_name(requirement.name) for requirement in requirements}


def applicable(requirements, python, extra=""):
    """The requirements whose marker holds for this Python and this extra."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
    return [
        requirement
        for requirement in map(Requirement, requirements)
        if requirement.marker is None or requirement.marker.evaluate(environment)
    ]


def pins(python):
    """Version by canonical name, as constraints.txt gives it to this Python."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    result = {}
    for requirement in applicable(
        [line for line in lines if line and not line.startswith("#")], python
    ):
        name = canonicalize_name(requirement.name)
        [specifier] = requirement.specifier
        assert specifier.operator == "==", f"{requirement}: not a pin"
        assert name not in result, f"{name}: pinned twice for Python {python}"
        result[name] = specifier.version
    return result


def test_wheel_holds_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    present = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "hwa_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "hwa_jax/py.typed" in packed
    assert packed == present


def test_installed_package_runs_away_from_the_clone(imported, metadata):
    version, path, _, elsewhere = imported
    assert path.is_relative_to(elsewhere)
    assert version == metadata["Version"]
    assert (path.parent / "py.typed").is_file()
    assert list(elsewhere.rglob("LICENSE"))


def test_import_loads_jax_and_optax_only(imported):
    _, _, modules, _ = imported
    assert {"jax", "optax"} <= modules
    edge = {
        "flax", "orbax", "tensorstore", "tensorflow_datasets", "array_record", "grain", "matplotlib",
        "sklearn", "PIL", "ml_collections", "tensorboardX", "rich", "tqdm", "safetensors",
    }  # fmt: skip
    assert not edge & modules


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", EXTRAS)
def test_pins_satisfy_every_declared_requirement(metadata, python, extra):
    pinned = pins(python)
    requirements = applicable(metadata.get_all("Requires-Dist"), python, extra)
    assert requirements
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{requirement}: not in constraints.txt for Python {python}"
        assert requirement.specifier.contains(pinned[name]), f"{requirement}: {pinned[name]} pinned"


def test_pins_reach_what_the_requirements_require(metadata):
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    pinned = pins(python)
    pending = [
        (canonicalize_name(requirement.name), extra)
        for requirement in applicable(metadata.get_all("Requires-Dist"), python, "dev")
        for extra in ("", *requirement.extras)
    ]
    seen = set()
    while pending:
        name, extra = pending.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        assert name in pinned, f"{name}: not in constraints.txt"
        for requirement in applicable(importlib.metadata.requires(name) or [], python, extra):
            pending += [(canonicalize_name(requirement.name), e) for e in ("", *requirement.extras)]
    assert ("jaxlib", "") in seen


def imports(folder):
    """Pairs of file and top-level module that a file in the folder imports from elsewhere."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            for module in {module.partition(".")[0] for module in modules}:
                local = any(
                    (place / module).is_dir() or (place / f"{module}.py").is_file()
                    for place in (ROOT, ROOT / folder, path.parent)
                )
                if module not in sys.stdlib_module_names and not local:
                    yield path.relative_to(ROOT), module


@pytest.mark.parametrize(
    "folder, extra", [("hwa_jax", ""), ("experiments", ""), ("configs", ""), ("benchmarks", "bench"), ("tests", "dev")]
)
def test_every_import_is_declared(metadata, folder, extra):
    declared = names_of(applicable(metadata.get_all("Requires-Dist"), PYTHONS[0], extra))
    providers = importlib.metadata.packages_distributions()
    undeclared = {
        f"{path}: {module}"
        for path, module in imports(folder)
        # What no installed package provides, PyTorch where only the tests' extra is, is looked for by its own name.
        if not declared & {canonicalize_name(name) for name in providers.get(module, [module])}
    }
    assert not undeclared


def test_citation_names_both_papers(metadata):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == metadata["Version"]
    papers = {
        paper["title"]: (
            paper["year"],
            paper["identifiers"][0]["value"],
            [author["family-names"] for author in paper["authors"]],
        )
        for paper in citation["references"]
    }
    assert papers == {
        "Hierarchical Weight Averaging for Deep Neural Networks": (
            2023, "arXiv:2304.11519", ["Gu", "Zhang", "Jiang", "Luo", "Zhang", "Cui", "Li"],
        ),
        "Sparse Weight Averaging with Multiple Particles for Iterative Magnitude Pruning": (
            2024, "arXiv:2305.14852", ["Choi", "Lee", "Nam", "Lee"],
        ),
    }  # fmt: skip
