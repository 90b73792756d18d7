"""tools/tpu_memory.py: the search for the largest batch that fits."""

import json
import pathlib
import types

import pytest

from deberta_tf.files import UsageError
from tools import tpu_compile, tpu_memory
from tools.tpu_memory import Cell

ROOT = pathlib.Path(__file__).parents[1]
CELL = Cell("deberta_v3_base", "v5e", 128, False)
REASON = (
    "JaxRuntimeError: RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory "
    "on HBM, the total memory required for HLO temporaries ({}) exceeds available HBM "
    "(15.75G). HLO module: a_inference_train_step_14144__.193."
)


def make_record(cell, batch_size, fits=True, temporaries=2**30, arguments=2**31):
    record = {
        **vars(cell),
        "optimizer": cell.optimizer,
        "batch_size": batch_size,
        "parameters": 1000,
        "fits": fits,
        "seconds": 1,
    }
    if fits:
        sizes = {"arguments": arguments, "temporaries": temporaries, "code": 0}
        return {**record, **sizes}
    return {**record, "required": temporaries and arguments + temporaries}


class Chip:
    """In place of the compiler: memory that grows with the batch, and a limit."""

    def __init__(self, row, fixed=2**30, tells=True):
        self.row, self.fixed, self.tells = row, fixed, tells
        self.asked = []

    def __call__(self, cell, batch_size, tpu_python):
        self.asked.append(batch_size)
        temporaries = self.fixed + self.row * batch_size
        fits = 2**31 + temporaries <= tpu_memory.AVAILABLE[cell.chip]
        known = temporaries if fits or self.tells else None
        return make_record(cell, batch_size, fits, known)


def options_of(path):
    return types.SimpleNamespace(records=str(path), tpu_python="python")


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("row", [2**18, 2**23, 2**25, 3 * 2**25, 2**29, 2**33])
def test_the_largest_power_of_two_is_found(row, tells, tmp_path, monkeypatch):
    chip = Chip(row, tells=tells)
    monkeypatch.setattr(tpu_memory, "compile_batch", chip)
    records = []
    tpu_memory.search(CELL, records, options_of(tmp_path / "a.jsonl"))
    fitting, failing = tpu_memory.bounds(records)
    room = 15.75 * 2**30 - 2**31 - 2**30
    if row > room:
        assert (fitting, failing) == (None, 1)
    else:
        # 2 ** k <= room / row < 2 ** (k + 1)
        assert fitting == 2 ** (int(room // row).bit_length() - 1)
        # Twice as many are known not to fit, or would by far not.
        assert failing == 2 * fitting or 2 * fitting * row > 1.2 * room
    assert len(set(chip.asked)) == len(chip.asked)
    assert tpu_memory.read_records(str(tmp_path / "a.jsonl")) == records


def test_what_is_known_is_not_compiled_again(tmp_path, monkeypatch):
    chip = Chip(2**25)
    monkeypatch.setattr(tpu_memory, "compile_batch", chip)
    options, records = options_of(tmp_path / "a.jsonl"), []
    tpu_memory.search(CELL, records, options)
    count = len(chip.asked)
    tpu_memory.search(CELL, tpu_memory.read_records(options.records), options)
    assert len(chip.asked) == count > 0


def test_the_other_chip_begins_where_the_first_one_ended():
    other = Cell("deberta_v3_base", "v4", 128, False)
    # 2 ** 25 bytes a row: 29.75 GiB less 2 GiB of state hold 888 of them.
    records = [make_record(CELL, 256, temporaries=2**33)]
    records[0]["parameters"] = 2**31 // 12
    assert tpu_memory.next_batch_size(other, records) == 512


def test_there_is_a_limit_of_compilations(tmp_path, monkeypatch):
    monkeypatch.setattr(tpu_memory, "compile_batch", Chip(2**25))
    other = Cell("deberta_v3_large", "v4", 512, True)
    records = [make_record(other, 2**i) for i in range(32)]
    with pytest.raises(UsageError, match="holds 32 compilations, no more may be made"):
        tpu_memory.search(CELL, records, options_of(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("told", "size"),
    [("33.46G", int(33.46 * 2**30)), ("512.5M", int(512.5 * 2**20)), ("12.3T", None)],
)
def test_the_compiler_says_how_much_is_lacking(told, size):
    assert tpu_memory.required(REASON.format(told)) == size


def test_a_compilation_becomes_a_record(monkeypatch):
    asked = []

    def compile_step(task, options):
        asked.append(options)
        if options.batch_size > 64:
            raise tpu_compile.OutOfMemory(REASON.format("33.00G"))
        return {"arguments": 5, "temporaries": 6, "code": 7, "flops": 8}

    task = types.SimpleNamespace(count_params=lambda: 11)
    monkeypatch.setattr(tpu_compile, "make_task", lambda options: task)
    monkeypatch.setattr(tpu_compile, "compile_step", compile_step)
    cell = Cell("deberta_v2_xxlarge", "v5e", 512, True)
    # Any file that exists will do for an interpreter.
    fits, fails = (tpu_memory.compile_batch(cell, n, __file__) for n in (64, 128))
    assert tpu_memory.cell_of(fits) == tpu_memory.cell_of(fails) == cell
    assert (fits["fits"], tpu_memory.peak(fits)) == (True, 18)
    assert (fails["fits"], fails["required"]) == (False, 33 * 2**30)
    assert "CompileTimeHbmOom" in fails["reason"]
    for options in asked:
        assert options.gradient_checkpointing
        # Of this size the blocks are a loop.
        assert options.scan_layers
        assert (options.chip, options.optimizer) == ("v5e", "adafactor")
        assert (options.objective, options.sequence_length) == ("masked_lm", 512)
        assert options.precision == "mixed_bfloat16"


def test_a_table_tells_the_largest_and_what_does_not_fit():
    kept = Cell("deberta_v3_base", "v5e", 128, True)
    records = [make_record(CELL, 2, fits=False), make_record(CELL, 1, fits=False)]
    assert tpu_memory.table(records).splitlines()[2] == (
        "| deberta_v3_base | v5e | 128 | adamw | does not fit |  | not compiled |  |"
    )
    records += [make_record(kept, 64), make_record(kept, 2048)]
    assert tpu_memory.table(records).splitlines()[2] == (
        "| deberta_v3_base | v5e | 128 | adamw | does not fit |  | 2,048 | 3.0 GiB |"
    )


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(make_record(CELL, 8)) + '\n{"preset": "deb')
    with pytest.raises(UsageError, match="a.jsonl, line 2, must be the record"):
        tpu_memory.read_records(str(path))


def test_every_cell_has_a_first_guess():
    for cell in tpu_memory.CELLS:
        size = tpu_memory.next_batch_size(cell, [])
        assert size >= 1
        assert size & (size - 1) == 0
    assert len(set(tpu_memory.CELLS)) == 4 * 2 * 2 * 2
