"""What an optimised module's text says of its operations: estimates, sizes, origins.

The TPU's compiler writes `estimated_cycles` beside the operations that it has a cost
model for. Sums are comparable only between programs whose large operations all have
one; `without_estimate` tells of the others.
"""

import dataclasses
import math
import re

# What TPUs are slow at.
COUNTED = ("gather", "scatter", "sort", "while")
# They move nothing, or what they move is counted where it is used or waited for.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast iota after-all partition-id "
    "replica-id copy-start copy-done slice-start slice-done async-start async-update "
    "async-done call while conditional opt-barrier".split()
)
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%(?P<name>\S+) = (?P<shape>\(.*?\)|\S+) (?P<kind>[a-z][a-z\-]*)\("
    r"(?P<operands>[^)]*)\)(?P<rest>.*)$"
)
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>\S+) \(")
_CALLED = re.compile(
    r"(?:body|calls|to_apply|true_computation|false_computation|branch_computations)="
    r"(\{[^}]*\}|%[^,\s]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_ORIGIN = re.compile(r'op_name="([^"]*)"')
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")
# Bytes of an element whose type's name has no bits in it.
_PREDICATE = 1


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction that a program runs, `times` over.

    `operation` is TensorFlow's name, with its layer; `elements` and `size`, in bytes,
    those of the largest array that it gives (a scatter: that it takes in); `cycles` the
    compiler's estimate for one run, None without.
    """

    kind: str
    name: str
    operation: str
    elements: int
    size: int
    cycles: int | None
    times: int
    fused: bool

    @property
    def all_cycles(self):
        return (self.cycles or 0) * self.times


def read_operations(text):
    """The operations of a module's text, those within fusions too (`fused`)."""
    computations, entry = _split(text)
    found = []
    _walk(computations, entry, 1, False, found)
    return found


def _split(text):
    """({computation: its instructions' matches}, the entry's name)."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            current = computations.setdefault(head["name"], [])
            entry = head["name"] if head["entry"] else entry
        instruction = _INSTRUCTION.match(line)
        if instruction and current is not None:
            current.append(instruction)
    if entry is None:
        raise ValueError("the text of a module has an ENTRY computation; found none")
    return computations, entry


def _walk(computations, name, times, fused, found):
    sizes = {}
    for one in computations.get(name, ()):
        sizes[one["name"]] = largest(one["shape"])
        found.append(_operation(one, sizes, times, fused))
        trips = _TRIPS.search(one["rest"]) if one["kind"] == "while" else None
        count = times * (int(trips[1]) if trips else 1)
        # What reduces or compares two numbers is no program of its own.
        if one["kind"] in ("fusion", "while", "call", "conditional", "async-start"):
            inside = fused or one["kind"] == "fusion"
            for names in _CALLED.findall(one["rest"]):
                for called in re.findall(r"%([^,}\s]+)", names):
                    _walk(computations, called, count, inside, found)


def _operation(one, sizes, times, fused):
    elements, size = sizes[one["name"]]
    if one["kind"] == "scatter":
        updates = re.findall(r"%([^\s,]+)", one["operands"])[-1]
        elements, size = sizes.get(updates, (elements, size))
    cycles, origin = _CYCLES.search(one["rest"]), _ORIGIN.search(one["rest"])
    return Operation(
        kind=one["kind"],
        name=one["name"],
        operation=origin[1] if origin else "",
        elements=elements,
        size=size,
        cycles=int(cycles[1]) if cycles else None,
        times=times,
        fused=fused,
    )


def largest(shape):
    """(elements, bytes) of the largest array of a shape, such as f32[8,128]{1,0}."""
    found = [(0, 0)]
    for _, bits, dimensions in _ARRAY.findall(shape):
        elements = math.prod(map(int, filter(None, dimensions.split(","))))
        width = int(bits) / 8 if bits else _PREDICATE
        found.append((elements, math.ceil(elements * width)))
    return max(found)


def estimated_cycles(operations):
    """The sum of the estimates, of all runs."""
    return sum(one.all_cycles for one in operations if not one.fused)


def dearest(operations, count=10):
    """The operations with the largest estimates, largest first."""
    known = [one for one in operations if one.cycles and not one.fused]
    return sorted(known, key=lambda one: -one.all_cycles)[:count]


def without_estimate(operations, least_elements):
    """Those without an estimate that move at least so many elements, largest first."""
    found = [
        one
        for one in operations
        if not one.fused
        and one.cycles is None
        and one.kind not in _FREE
        and one.elements >= least_elements
    ]
    return sorted(found, key=lambda one: -one.elements * one.times)


def counted(operations, kinds=COUNTED):
    """Those of some kinds, within fusions too."""
    return [one for one in operations if one.kind in kinds]
