"""tools/tpu_memory.py: the search for the largest batch that fits."""

import json
import types

import pytest

from deberta_tf.files import UsageError
from tools import tpu_compile, tpu_memory, tpu_step
from tools.tpu_memory import Cell

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
        "scan_layers": cell.scan_layers,
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


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("<!-- memory -->\n<!-- end of memory -->\n")
    return path


def search(document, *flags):
    """Runs the command on the cells of base models on v5e; returns its records."""
    records = document.with_suffix(".jsonl")
    flags = ["--preset", "deberta_v3_base", "--chip", "v5e", *flags]
    tpu_memory.main([f"--records={records}", f"--document={document}", *flags])
    return tpu_memory.read_records(str(records))


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("row", [2**18, 2**23, 2**25, 3 * 2**25, 2**29, 2**33])
def test_the_largest_power_of_two_is_found(row, tells, document, monkeypatch):
    chip = Chip(row, tells=tells)
    monkeypatch.setattr(tpu_memory, "compile_batch", chip)
    records = search(document, "--most_compilations=99")
    room = 15.75 * 2**30 - 2**31 - 2**30
    for length, checkpointing in ((128, False), (512, True)):
        cell = Cell("deberta_v3_base", "v5e", length, checkpointing)
        own = tpu_memory.of_cell(cell, records)
        fitting, failing = tpu_memory.bounds(own)
        sizes = [record["batch_size"] for record in own]
        assert len(set(sizes)) == len(sizes)
        if row > room:
            assert (fitting, failing) == (None, 1)
            assert tpu_memory.entry(cell, records) == ["does not fit", ""]
            continue
        # 2 ** k <= room / row < 2 ** (k + 1)
        largest = 2 ** (int(room // row).bit_length() - 1)
        assert tpu_memory.entry(cell, records)[0] == f"{largest:,}"
        if fitting is None:
            # By the memory that twice as many were said to need.
            assert tells
            assert failing == 2 * largest
            assert largest * row < 0.8 * room
            continue
        assert fitting == largest
        # Twice as many are known not to fit, or would by far not.
        assert failing == 2 * fitting or 2 * fitting * row > 1.2 * room
    assert tpu_memory.table(records) in document.read_text()


def test_what_is_known_is_not_compiled_again(document, monkeypatch):
    chip = Chip(2**25)
    monkeypatch.setattr(tpu_memory, "compile_batch", chip)
    first = search(document)
    count = len(chip.asked)
    assert search(document) == first
    assert len(chip.asked) == count == len(first) > 0


def test_each_cell_has_an_entry_before_any_has_a_better_one(
    document, monkeypatch, capsys
):
    # So small a row that the first guess is never the last.
    monkeypatch.setattr(tpu_memory, "compile_batch", Chip(2**18))
    records = search(document, "--most_compilations=4")
    assert len({tpu_memory.cell_of(record) for record in records}) == 4
    assert "4 compilations; not finished: 4 cells" in capsys.readouterr().out
    assert document.read_text().count(" or more |") == 4


def test_of_a_loop_more_temporaries_do_not_grow_with_the_batch():
    plain = make_record(CELL, 8, temporaries=8000)
    scanned = {**plain, "scan_layers": True}
    found = [tpu_memory.foretold_of_twice(record) for record in (plain, scanned)]
    # 1,000 parameters; of a loop, what goes into 12 blocks of 768 stays.
    kept = 12 * 768 * 2 * 8 * 128
    assert found == [2**31 + 8000 + 2000, 2**31 + 8000 + kept]


def test_a_loop_keeps_what_goes_into_each_block():
    """48 blocks of 512 tokens, 1,536 numbers of 2 bytes each."""
    cell = Cell("deberta_v2_xxlarge", "v5e", 512, False)
    kept = 48 * 512 * 1536 * 2
    for spare, batch_size in ((kept - 1, None), (kept, 2)):
        record = make_record(cell, 1, arguments=tpu_memory.AVAILABLE["v5e"] - spare)
        record["arguments"] -= record["temporaries"]
        # Nothing else of it is known to grow.
        record["parameters"] = 10**9
        assert tpu_memory.next_batch_size(cell, [record]) == batch_size


def test_half_of_a_batch_that_does_not_fit_is_foretold_from_above():
    needed = make_record(CELL, 64, fits=False, arguments=12000, temporaries=10000)
    # 1,000 parameters: 12,000 bytes of state, 4,000 of gradients; 6,000 are the rows'.
    assert tpu_memory.foretold_of_half(needed) == 16000 + 2**30 + 4000
    scanned = {**needed, "scan_layers": True}
    assert tpu_memory.foretold_of_half(scanned) == 20000 + 2**30 + 2000 / 1.5
    untold = {**needed, "required": None}
    available = tpu_memory.AVAILABLE["v5e"]
    barely = {**needed, "required": int(1.3 * available)}
    by_far = {**needed, "required": int(1.6 * available)}
    assert tpu_memory.next_batch_size(CELL, [barely]) is None
    assert tpu_memory.entry(CELL, [barely]) == ["32", "≤ 14.7 GiB"]
    for record in (untold, by_far):
        assert tpu_memory.next_batch_size(CELL, [record]) == 32
        assert tpu_memory.entry(CELL, [record]) == ["below 64", ""]


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
    monkeypatch.setattr(tpu_step, "make_task", lambda options: task)
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
    start = "| deberta_v3_base | v5e | 128 | adamw |"

    def line(*records):
        return tpu_memory.table(records).splitlines()[2]

    records = [make_record(CELL, 2, fits=False, temporaries=2**35)]
    assert line(*records) == f"{start} below 2 |  | not compiled |  |"
    records.append(make_record(CELL, 1, fits=False))
    assert line(*records) == f"{start} does not fit |  | not compiled |  |"
    records += [make_record(kept, 64), make_record(kept, 2048)]
    assert line(*records) == f"{start} does not fit |  | 2,048 or more | 3.0 GiB |"
    records.append(make_record(kept, 4096, fits=False))
    assert line(*records) == f"{start} does not fit |  | 2,048 | 3.0 GiB |"


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    whole = make_record(CELL, 8)
    without = {name: value for name, value in whole.items() if name != "code"}
    for broken in ('{"preset": "deb', json.dumps(without), "[]"):
        path.write_text(f"{json.dumps(whole)}\n{broken}\n")
        with pytest.raises(UsageError, match="a.jsonl, line 2, must be the record"):
            tpu_memory.read_records(str(path))


def test_every_cell_has_a_first_guess():
    for cell in tpu_memory.CELLS:
        size = tpu_memory.next_batch_size(cell, [])
        assert size >= 1
        assert size & (size - 1) == 0
    assert len(set(tpu_memory.CELLS)) == 4 * 2 * 2 * 2
