"""Damages of files, and the kinds of files that a work directory holds."""

import pathlib
import re
import shutil

import numpy as np


def truncate(path, rng):
    # A text without its last byte, the end of a line, is whole.
    path.write_bytes(path.read_bytes()[: rng.randrange(max(path.stat().st_size - 1, 1))])


def flip(path, rng):
    content = bytearray(path.read_bytes())
    # Only tree.json has a checksum of its bytes: elsewhere in a JSON file one digit may be another.
    is_plain = path.suffix in (".json", ".jsonl") and path.name != "tree.json"
    content[0 if is_plain else rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def remove(path, rng):
    path.unlink()


DAMAGES = {"truncated": truncate, "bit flipped": flip, "missing": remove}
# Of the files of both algorithms, or all of a directory: how the same command ends where one is truncated, has a flipped bit, or is missing.
COMMON_ENDS = {
    "config.json": ("refused", "refused", "refused"),
    "environment.json": ("refused", "refused", "same"),
    "metrics.jsonl": ("same", "refused", "same"),
    "results.json": ("refused", "refused", "same"),
    "checkpoints": ("same", "same", "same"),
}


def files_by_kind(directory):
    """The name of a file, less numbers of steps and cycles, -> paths within the directory; empty files hold nothing to damage."""
    kinds = {}
    for path in sorted(pathlib.Path(directory).rglob("*")):
        if path.is_file() and path.stat().st_size:
            parts = [part for part in path.relative_to(directory).parts if not re.fullmatch(r"step_.*|cycle_\d+|\d+", part)]
            kinds.setdefault("/".join([*parts[:-1][:3], "*" if "d" in parts[:-1] else parts[-1]]), []).append(path.relative_to(directory))
    return kinds


def expected_end(ends, kind, damage):
    """What a table says, which has a kind of file, or all of a directory -> the ends by `DAMAGES`."""
    return dict(zip(DAMAGES, ends.get(kind) or ends[kind.split("/")[0]], strict=True))[damage]


def end_after(damage, run, path, place, rng, *, whole, give_again, exported):
    """Damages a copy of a run and gives the same command; where it refuses, it does as the line says and gives it once more.

    Args:
        damage: one of `DAMAGES`.
        run: the work directory, which stays as it is.
        path: of the file, within it.
        place: an empty directory for the copy.
        rng: a `random.Random`.
        whole: the final weights by name of a run that nothing happened to.
        give_again: (directory, *flags) -> how the program ended.
        exported: directory -> the final weights by name.

    Returns:
        "same", "refused", which ends at the same weights too, or "warned": of a lost member of the window, and the weights are others.
    """
    copy = pathlib.Path(shutil.copytree(run, place / "run"))
    DAMAGES[damage](copy / path, rng)
    ended = give_again(copy)
    if ended.code:
        again = give_again(copy, *_do_as_advised(ended.stderr))
        assert again.code == 0 and are_equal(exported(copy), whole), (path, damage, ended.stderr, again.stderr)
        return "refused"
    if are_equal(exported(copy), whole):
        return "same"
    assert "the window has lost its members" in ended.stderr, (path, damage, ended.stderr)
    return "warned"


def _do_as_advised(stderr):
    """Deletes the file or directory that the line of a refusal names, or returns the flag that it advises."""
    named = re.search(
        r"or delete (\S+), and the training makes it again|(\S+): every checkpoint is damaged, .*: delete the directory|(\S+): line .*: remove the line, or the file",
        stderr,
    )
    if not named:
        assert "--overwrite" in stderr, stderr
        return ["--overwrite"]
    [path] = map(pathlib.Path, filter(None, named.groups()))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return []


def are_equal(weights, others):
    """Whether two dictionaries of arrays are equal bit for bit."""
    return weights.keys() == others.keys() and all(np.array_equal(weights[name], others[name]) for name in others)
