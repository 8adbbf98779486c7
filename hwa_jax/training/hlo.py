"""Reads the text of compiled programs (HLO): which computation holds a collective, and what leads there."""

import re
from typing import Any

_COLLECTIVE = re.compile(
    r"\s(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(-start)?\("
)


def computations(text: str) -> dict[str | None, Any]:
    """Name -> instruction lines of every computation; the entry's name is under None.

    Example:
        >>> computations("ENTRY %main (x: f32[]) -> f32[] {\\n  ROOT %y = f32[] negate(%x)\\n}")
        {'main': ['  ROOT %y = f32[] negate(%x)'], None: 'main'}
    """
    found, name = {}, None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
        if header:
            name = header.group(2)
            found[name] = []
            if header.group(1):
                found[None] = name
        elif line.startswith("}"):
            name = None
        elif name is not None:
            found[name].append(line)
    return found


def collectives(text: str) -> tuple[list[str], list[str]]:
    """The lines of all collectives: (those that run on every call, those that only a conditional leads to).

    Example:
        >>> collectives("ENTRY %main (x: f32[]) -> f32[] {\\n  ROOT %y = f32[] all-reduce(%x), to_apply=%sum\\n}")
        (['ROOT %y = f32[] all-reduce(%x), to_apply=%sum'], [])
    """
    found = computations(text)
    entry = found.pop(None)
    always, todo = set(), [entry]
    while todo:
        name = todo.pop()
        always.add(name)
        for line in found[name]:
            if " conditional(" not in line:
                todo += [called for called in re.findall(r"%([\w.\-]+)", line) if called in found and called not in always]
    lines = {name: [line.strip() for line in body if _COLLECTIVE.search(line)] for name, body in found.items()}
    return (
        [line for name in found if name in always for line in lines[name]],
        [line for name in found if name not in always for line in lines[name]],
    )


def operation(line: str) -> str:
    """What a line of `collectives` does.

    Example:
        >>> operation("%y = f32[] all-reduce-start(%x), to_apply=%sum")
        'all-reduce'
    """
    return _COLLECTIVE.search(line)[1]
