"""Reads compiled HLO text: which computation holds a collective, and what leads there."""

import re

_COLLECTIVE = re.compile(
    r"\s(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)(-start)?\("
)


def computations(text):
    """Name -> instruction lines of every computation; the entry's name is under None."""
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


def collectives(text):
    """The lines of all collectives: (those that run on every call, those that only a conditional leads to)."""
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
