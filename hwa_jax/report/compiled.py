"""What compilers said of programs for accelerators that were not there, as text."""

import collections
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from hwa_jax.report.tables import format_bytes, markdown_table
from hwa_jax.storage import atomic
from hwa_jax.training.ahead_of_time import CompiledProgram
from hwa_jax.training.environment import environment


def table(programs: Sequence[CompiledProgram]) -> str:
    """A row for every program, in markdown; bytes are those on each device.

    Example:
        >>> print(table([CompiledProgram("step", 2_000_000, 500_000, (), ("all-reduce",))]))
        | program | arguments | temporary | every call | where an average is due |
        | :------ | --------: | --------: | ---------: | ----------------------: |
        | step    |      2 MB |    500 kB |       none |            1 all-reduce |
    """
    return markdown_table(
        ["program", "arguments", "temporary", "every call", "where an average is due"],
        [[p.name, format_bytes(p.argument_bytes), format_bytes(p.temporary_bytes), _counts(p.always), _counts(p.sometimes)] for p in programs], "lrrrr",
    )


def add_to_report(directory: Path, config: ConfigDict, topology: str, device_kind: str, programs: Sequence[CompiledProgram], command: str) -> Path:
    """Stores what was compiled, and writes report.md of all that the directory holds.

    Args:
        directory: made if absent; the same training for the same devices is replaced.
        config: of the training.
        topology: of which devices.
        device_kind: their name.
        programs: what was compiled.
        command: that did it.

    Returns:
        The path of report.md.

    Raises:
        UserError: a file cannot be written.
    """
    algorithm, number = ("SWAMP", f"N = {config.swamp.num_particles}") if "swamp" in config else ("HWA", f"K = {config.hwa.num_replicas}")
    cell = {
        "title": f"{algorithm} of {config.model.name}, {number}, {config.model.dtype}, on {topology}",
        "device_kind": device_kind, "command": command, "environment": environment(), "programs": [program._asdict() for program in programs],
    }
    name = re.sub(r"[^\w.-]+", "_", cell["title"].replace(" = ", "").lower())
    (directory / "cells").mkdir(parents=True, exist_ok=True)
    atomic.write_json(directory / "cells" / f"{name}.json", cell)
    path = directory / "report.md"
    atomic.write_text(path, report([json.loads(path.read_text()) for path in sorted(directory.glob("cells/*.json"))]))
    return path


def report(cells: Sequence[Mapping]) -> str:
    """The text of report.md.

    Example:
        >>> print(report([]).splitlines()[0])
        # Compiled for accelerators that were not there
    """
    return "\n\n".join([
        "# Compiled for accelerators that were not there",
        "The trainers' own programs, compiled by XLA for TPU slices (libtpu) and for NVIDIA GPUs, on a machine with neither. Nothing was run: this shows that "
        "the programs compile, what each device holds (arguments with the training images among them, and what a program needs beside), and which of them communicate: on every "
        "call, or only where an average is due. A GPU's compiler chooses its convolutions by trying them, here it could not.",
        *(part for cell in cells for part in _section(cell)),
    ]) + "\n"


def _section(cell):
    machine = cell["environment"]
    programs = [CompiledProgram(**program) for program in cell["programs"]]
    return [
        f"## {cell['title']} ({cell['device_kind']})", table(programs), f"```\n{cell['command']}\n```",
        f"jax {machine['jax']}, jaxlib {machine['jaxlib']}, {machine['cpu_model']}, {machine['cpu_cores']} cores. Commit: {machine['git_commit']}.",
    ]


def _counts(operations):
    return ", ".join(f"{number} {name}" for name, number in collections.Counter(operations).items()) or "none"
