"""Bytes that a compiled program communicates, read from the text of its optimised HLO."""

import math
import re
from collections import defaultdict
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch|true|false)_computations?=\{?%?([\w.\-]+(?:, %?[\w.\-]+)*)")


class Traffic(NamedTuple):
    """How often a program runs one kind of collective, and on how many bytes in all."""

    count: int
    bytes: int


def traffic(hlo: str) -> dict[str, Traffic]:
    """What one run of a compiled program communicates, by kind of collective.

    The bytes of a collective are those of its result on one device: of an all-reduce the array that
    is summed, of an all-gather the gathered one. One in the body of a loop counts as often as the
    loop turns.

    Args:
        hlo: `compiled.as_text()`, after partitioning over the devices.

    Raises:
        ValueError: A collective in a loop of unknown length or in a branch, or an asynchronous one,
            which a CPU does not have.
    """
    entry, computations = _parse(hlo)
    total: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(name: str, times: int) -> None:
        for line in computations.get(name, ()):
            if found := _COLLECTIVE.search(line):
                if found[3]:
                    raise ValueError(f"`hlo` must have synchronous collectives, got {line[:200]}")
                total[found[2]][0] += times
                total[found[2]][1] += times * size_of(found[1])
            turns = _TRIPS.search(line)
            inside = _CALLED.findall(line)
            branches = [name for names in _BRANCHES.findall(line) for name in _names(names)]
            if branches and any(map(communicates, branches)):
                raise ValueError(f"`hlo` must have no collective in a branch, got {line[:200]}")
            if " while(" in line and not turns and any(map(communicates, inside)):
                raise ValueError(f"`hlo` must have loops of known length, got {line[:200]}")
            for called in inside:
                add(called, times * (int(turns[1]) if turns and " while(" in line else 1))

    def communicates(name: str) -> bool:
        return any(
            _COLLECTIVE.search(line)
            or any(map(communicates, _CALLED.findall(line)))
            or any(map(communicates, _names(" ".join(_BRANCHES.findall(line)))))
            for line in computations.get(name, ())
        )

    add(entry, 1)
    return {kind: Traffic(*total[kind]) for kind in KINDS if kind in total}


def size_of(shape: str) -> int:
    """Bytes of a shape in HLO, `f32[64,3]{1,0}` or a tuple of them; less than 8 bits are 8."""
    sizes = []
    for kind, bits, sides in _ARRAY.findall(shape):
        width = 1 if kind == "pred" else max(1, int(bits) // 8)
        sizes.append(width * math.prod(int(side) for side in sides.split(",") if side))
    return sum(sizes)


def _names(text: str) -> list[str]:
    return re.findall(r"[\w.\-]+", text)


def _parse(hlo: str) -> tuple[str, dict[str, list[str]]]:
    """The name of the entry computation, and the instructions of each computation."""
    entry, computations, current = "", {}, None
    for line in hlo.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    if not entry:
        raise ValueError(f"`hlo` must be the text of a compiled program, got {hlo[:80]!r}.")
    return entry, computations
