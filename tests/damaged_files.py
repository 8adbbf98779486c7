"""Damages of files, and the kinds of files that a work directory holds."""

import pathlib
import re
import shutil

import numpy as np


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def remove(path, rng):
    path.unlink()


DAMAGES = {"truncated": truncate, "bit flipped": flip, "missing": remove}


def files_by_kind(directory):
    """The name of a file, less numbers of steps and cycles, -> paths within the directory; empty files hold nothing to damage."""
    kinds = {}
    for path in sorted(pathlib.Path(directory).rglob("*")):
        if path.is_file() and path.stat().st_size:
            parts = [part for part in path.relative_to(directory).parts if not re.fullmatch(r"step_.*|cycle_\d+|\d+", part)]
            kinds.setdefault("/".join([*parts[:-1][:3], "*" if "d" in parts[:-1] else parts[-1]]), []).append(path.relative_to(directory))
    return kinds


def give_again_after(damage, run, path, place, rng, *, give_again, exported):
    """Damages a copy of a run and gives the same command.

    Args:
        damage: one of `DAMAGES`.
        run: the work directory, which stays as it is.
        path: of the file, within it.
        place: an empty directory for the copy.
        rng: a `random.Random`.
        give_again: directory -> how the program ended.
        exported: directory -> the final weights by name.

    Returns:
        The copy, how the program ended, and the weights; None where it refused.
    """
    copy = pathlib.Path(shutil.copytree(run, place / "run"))
    DAMAGES[damage](copy / path, rng)
    ended = give_again(copy)
    return copy, ended, None if ended.code else exported(copy)


def are_equal(weights, others):
    """Whether two dictionaries of arrays are equal bit for bit."""
    return weights.keys() == others.keys() and all(np.array_equal(weights[name], others[name]) for name in others)
