"""tools/hlo_text.py: what an optimised module says of its operations."""

import pathlib

import pytest

from tools import hlo_text

# Written by hand, in the words of libtpu's modules.
TEXT = pathlib.Path(__file__).parent / "data" / "optimised_module.txt"


@pytest.fixture(scope="module")
def operations():
    return hlo_text.read_operations(TEXT.read_text("utf-8"))


def test_estimates_add_up_over_the_runs_of_a_loop(operations):
    # And 5 of a branch that two conditionals may take.
    assert hlo_text.estimated_cycles(operations) == 12 * 100 + 7000 + 2 * 5


def test_the_dearest_come_first_with_their_origin(operations):
    first, second = hlo_text.dearest(operations, 2)
    assert (first.name, first.all_cycles) == ("dot.9", 7000)
    assert second.operation == "deberta/encoder/block_0/attention/MatMul"
    assert (second.times, second.all_cycles) == (12, 1200)
    assert hlo_text.dearest(operations, 1) == [first]


def test_what_has_no_estimate_is_told_with_its_size(operations):
    found = hlo_text.without_estimate(operations, 3)
    assert [(one.kind, one.elements, one.size) for one in found] == [
        ("copy", 16 * 64, 4 * 16 * 64),
        # The 3 that it takes in, not the 1,000 among which they go.
        ("sort", 3, 12),
        ("sort", 3, 12),
        ("scatter", 3, 12),
    ]
    assert [one.kind for one in hlo_text.without_estimate(operations, 4)] == ["copy"]


def test_gathers_within_fusions_are_counted_as_often_as_they_run(operations):
    gathers = hlo_text.counted(operations, ["gather"])
    found = sorted((one.times, one.fused) for one in gathers)
    assert found == [*[(1, True)] * 3, (12, True)]
    kinds = [one.kind for one in hlo_text.counted(operations)]
    assert sorted(kinds) == [*["gather"] * 4, "scatter", "sort", "sort", "while"]


def test_what_reduces_two_numbers_is_no_operation_of_the_program(operations):
    assert "add" not in {one.kind for one in operations}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[8,128]{1,0:T(8,128)}", (1024, 4096)),
        ("(s32[], bf16[2,3]{1,0}, pred[5])", (6, 12)),
        ("s4[8]{0}", (8, 4)),
        ("f8e4m3fn[10]", (10, 10)),
        ("token[]", (1, 1)),
        ("()", (0, 0)),
    ],
)
def test_the_largest_array_of_a_shape(shape, expected):
    assert hlo_text.largest(shape) == expected


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo_text.read_operations("HloModule nothing")
