"""tools/check_attention.py: what a user with a TPU runs, here on the CPU."""

import re

import numpy as np
import pytest

from deberta_tf import position_terms
from deberta_tf.files import UsageError
from tools import check_attention, timing

SMALL = ["--lengths", "9", "--tokens=18", "--num_heads=2", "--head_dim=4", "--rounds=1"]


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS_A_TURN", 0.0)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_forms_are_compared_and_timed(precision, capsys):
    assert check_attention.main([*SMALL, f"--precision={precision}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"device CPU:0, {precision}, forms shift, product"
    pattern = r"2 x 9 (\w+) .* error ([\d.]+) \(bound ([\d.]+)\): equal"
    found = [re.search(pattern, one) for one in lines[1:]]
    assert [one[1] for one in found] == ["shift", "product"]
    worst = max(float(one[2]) for one in found)
    bound = float(found[0][3])
    assert 0 < bound < 0.2
    assert worst < (1e-4 if precision == "float32" else bound)


def test_a_form_that_is_wrong_is_told(monkeypatch, capsys):
    right = position_terms.relative_shift
    monkeypatch.setattr(
        position_terms, "relative_shift", lambda x, length: -right(x, length)
    )
    assert check_attention.main([*SMALL, "--forms", "product", "shift"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"shift .*: WRONG", told)
    assert re.search(r"product .*: equal", told)


def test_a_gradient_that_is_no_number_is_no_small_error():
    right = [np.ones(3), np.ones(2)]
    assert check_attention.largest_error([np.ones(3), np.ones(2)], right) == 0
    wrong = [np.ones(3), np.array([1.0, np.nan])]
    assert not check_attention.largest_error(wrong, right) < 1


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="fused is for a TPU; the device is CPU:0"):
        check_attention.main(["--forms", "fused"])
    with pytest.raises(UsageError, match="does not fit: heads must be"):
        check_attention.main(["--forms=fused", "--device=TPU:0", "--num_heads=3"])
    with pytest.raises(UsageError, match="--rounds must be at least 1"):
        check_attention.main(["--rounds=0"])
    with pytest.raises(UsageError, match="--lengths must be more than 3"):
        check_attention.main(["--lengths", "3"])
