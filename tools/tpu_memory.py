"""The largest batches that a TPU's memory holds, by its compiler, without a TPU.

    python -m tools.tpu_memory

Compiles training steps of masked LM (`tools.tpu_compile`) of the sizes, chips and
lengths below, with and without gradient checkpointing, for batches that are powers of
two, until it is known which is the largest that fits. A compilation is a line of
`docs/tpu_memory.jsonl`: the same command goes on. The table goes into docs/tpu.md.
"""

import dataclasses
import itertools
import math
import os
import re
import time

from deberta_tf import files
from deberta_tf.masking import num_mask_positions
from deberta_tf.published import PUBLISHED_SIZES
from tools import tpu_compile, tpu_step
from tools.documents import markdown_table, put_table

PRESETS = (
    "deberta_v3_xsmall",
    "deberta_v3_base",
    "deberta_v3_large",
    "deberta_v2_xxlarge",
)
CHIPS = ("v5e", "v4")
LENGTHS = (128, 512)
# The state of AdamW, 12 bytes a parameter with the weights, is more than the chip has.
WITHOUT_ADAMW = {("deberta_v2_xxlarge", "v5e")}
# As a loop: of 48 blocks one by one the compiler takes more memory than this machine
# has.
SCANNED = ("deberta_v2_xxlarge",)
SCANNED_ON_V4 = ("deberta_v3_large",)
# And of the 12 of v3-base, for v4, of this length and with checkpointing, 20 GB.
SCANNED_LENGTH = 512
# What the compiler gives a program of a chip's memory, by its errors.
AVAILABLE = {"v5e": int(15.75 * 2**30), "v4": int(30.75 * 2**30)}
# What the compiler saves at most near the limit, of what a straight line foretells:
# two layers of the 1.5B model took 12.4 GB of temporaries at 720 rows of 128, where
# 1.25 times those at 576 rows would be 14.1.
SAVED = 0.25
# More than the program itself was seen to take.
CODE = 2**30
_REQUIRED = re.compile(r"\((?P<size>[\d.]+)(?P<unit>[GM])\) exceeds available HBM")


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a largest batch is looked for of."""

    preset: str
    chip: str
    sequence_length: int
    gradient_checkpointing: bool

    @property
    def optimizer(self):
        without = (self.preset, self.chip) in WITHOUT_ADAMW
        return "adafactor" if without else "adamw"

    @property
    def scan_layers(self):
        if self.chip == "v4":
            if self.preset in SCANNED_ON_V4:
                return True
            if self.gradient_checkpointing and self.sequence_length == SCANNED_LENGTH:
                return True
        return self.preset in SCANNED


CELLS = tuple(
    Cell(preset, chip, length, checkpointing)
    for preset, chip, length, checkpointing in itertools.product(
        PRESETS, CHIPS, LENGTHS, (False, True)
    )
)


def main(argv=None):
    options = _parse(argv)
    records = read_records(options.records)
    wanted = [c for c in CELLS if c.preset in options.preset and c.chip in options.chip]
    while open_cells := [c for c in wanted if next_batch_size(c, records) is not None]:
        if len(records) >= options.most_compilations:
            print(f"{len(records)} compilations; not finished: {len(open_cells)} cells")
            break
        # Each cell has an entry before any has a better one.
        cell = min(open_cells, key=lambda cell: len(of_cell(cell, records)))
        record = compile_batch(cell, next_batch_size(cell, records), options.tpu_python)
        # Others may have added to them meanwhile.
        records = [*read_records(options.records), record]
        files.write_json_lines(options.records, records)
        put_table(options.document, "memory", table(records))
    print(table(records))


def _parse(argv):
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--records",
        default=os.path.join("docs", "tpu_memory.jsonl"),
        help="file of a line for each compilation (%(default)s)",
    )
    parser.add_argument(
        "--document",
        default=os.path.join("docs", "tpu.md"),
        help="where the table goes (%(default)s)",
    )
    parser.add_argument(
        "--most_compilations",
        type=int,
        default=32,
        help="lines of --records over which none is added (%(default)s)",
    )
    parser.add_argument("--preset", nargs="*", choices=PRESETS, default=PRESETS)
    parser.add_argument("--chip", nargs="*", choices=CHIPS, default=CHIPS)
    parser.add_argument(
        "--tpu_python", default=".venv-tpu/bin/python", help="as tools.tpu_compile's"
    )
    return parser.parse_args(argv)


def read_records(path):
    """The compilations of a file, list of dict; none where there is no file."""
    return files.read_json_lines(path, _fields, "the record of a compilation")


def _fields(record):
    """What search and table read; raises where a record lacks it."""
    sizes = ("arguments", "temporaries", "code") if record["fits"] else ("required",)
    names = ("optimizer", "scan_layers", "batch_size", "parameters", *sizes)
    return cell_of(record), [record[name] for name in names]


def cell_of(record):
    """The `Cell` that a compilation is of."""
    return Cell(
        **{field.name: record[field.name] for field in dataclasses.fields(Cell)}
    )


def of_cell(cell, records):
    """The compilations of a cell, as it is compiled now: as a loop or not."""
    return [
        record
        for record in records
        if cell_of(record) == cell and record["scan_layers"] == cell.scan_layers
    ]


def compile_batch(cell, batch_size, tpu_python):
    """One compilation, as a record.

    Returns:
        dict of the fields of `Cell`, `optimizer`, `scan_layers`, `batch_size`,
        `parameters`, `fits`, `seconds` it took, and bytes of the step: `arguments`
        (weights, state of the optimizer, batch), `temporaries` and `code`; where it
        does not fit, the compiler's `reason`, and `required`, what that tells of the
        sum of the first two, or None.
    """
    began = time.monotonic()
    flags = [f"--{name}={getattr(cell, name)}" for name in ("preset", "chip")]
    flags += [f"--sequence_length={cell.sequence_length}", f"--batch_size={batch_size}"]
    flags += [f"--optimizer={cell.optimizer}", f"--tpu_python={tpu_python}"]
    for name in ("gradient_checkpointing", "scan_layers"):
        if getattr(cell, name):
            flags.append(f"--{name}")
    compilation = tpu_compile.parse(flags)
    task = tpu_step.make_task(compilation)
    try:
        report = tpu_compile.compile_step(task, compilation)
        facts = {name: report[name] for name in ("arguments", "temporaries", "code")}
        facts["fits"] = True
    except tpu_compile.OutOfMemory as error:
        facts = {"fits": False, "reason": str(error), "required": required(str(error))}
    record = {
        **dataclasses.asdict(cell),
        "optimizer": cell.optimizer,
        "scan_layers": cell.scan_layers,
        "batch_size": batch_size,
        "parameters": task.count_params(),
        **facts,
        "seconds": round(time.monotonic() - began),
    }
    print(told(record), flush=True)
    return record


def required(reason):
    """Bytes that the compiler says a step's arguments and temporaries take, or None."""
    found = _REQUIRED.search(reason)
    if found is None:
        return None
    return int(float(found["size"]) * {"G": 2**30, "M": 2**20}[found["unit"]])


def told(record):
    """A compilation in words."""
    how = " with checkpointing" if record["gradient_checkpointing"] else ""
    memory = f"{peak(record) / 2**30:.2f} GiB" if record["fits"] else "does not fit"
    return (
        f"{record['preset']} on {record['chip']}, {record['batch_size']} x "
        f"{record['sequence_length']}{how}: {memory} ({record['seconds']} s)"
    )


def peak(record):
    """Bytes of a step that fits: what it updates takes the place of what it was."""
    return record["arguments"] + record["temporaries"] + record["code"]


def next_batch_size(cell, records):
    """The batch to compile next for a cell; None: its largest batch is known."""
    own = of_cell(cell, records)
    fitting, failing = bounds(own)
    if not own:
        return first_batch_size(cell)
    if failing == 1 or (fitting and failing == 2 * fitting):
        return None
    if fitting is None:
        if foretold_of_half(_of_size(failing, own)) <= AVAILABLE[cell.chip]:
            return None
        return max(1, min(failing // 2, _that_fits(cell, own, failing)))
    twice = foretold_of_twice(_of_size(fitting, own))
    return None if twice > AVAILABLE[cell.chip] else 2 * fitting


def _of_size(batch_size, records):
    """The compilation of a batch, of those of a cell."""
    (record,) = [one for one in records if one["batch_size"] == batch_size]
    return record


def bounds(records):
    """(largest batch that fits, smallest that does not), each None where none is."""
    sizes = {
        fits: [r["batch_size"] for r in records if r["fits"] == fits]
        for fits in (True, False)
    }
    return max(sizes[True], default=None), min(sizes[False], default=None)


def foretold_of_twice(record):
    """Bytes that twice the batch of a step that fits takes at least."""
    growing = max(record["temporaries"] - _fixed(record), 0) * (1 - 2 * SAVED)
    return peak(record) + max(growing, _kept(record))


def _kept(record):
    """Bytes that a loop keeps of every block in any case: what goes into it, in
    bfloat16."""
    if not record["scan_layers"]:
        return 0
    size = PUBLISHED_SIZES[record["preset"]]
    tokens = record["batch_size"] * record["sequence_length"]
    return 2 * size["num_layers"] * size["hidden_dim"] * tokens


def foretold_of_half(record):
    """Bytes that half the batch of a step that does not fit takes at most.

    Short of memory the compiler saved what it could; at half the batch it does not.
    """
    if record["required"] is None:
        return math.inf
    fixed = state(cell_of(record), record["parameters"]) + _fixed(record)
    growing = max(record["required"] - fixed, 0)
    return fixed + CODE + growing / 2 / (1 - SAVED)


def _fixed(record):
    """Bytes of the temporaries that do not grow with the batch, at most.

    Gradients in float32, and of a loop the stacked matrices and their gradients in
    bfloat16.
    """
    return (8 if record["scan_layers"] else 4) * record["parameters"]


def _that_fits(cell, own, failing):
    """The power of two that fits by what a step needed that did not."""
    record = _of_size(failing, own)
    if record["required"] is None:
        return failing // 2
    fixed = state(cell, record["parameters"])
    grows = max(record["required"] - fixed, 1)
    return _power_of_two(failing * max(AVAILABLE[cell.chip] - fixed, 0) / grows)


def state(cell, parameters):
    """Bytes of the weights and the optimizer's state."""
    return (12 if cell.optimizer == "adamw" else 4) * parameters


def first_batch_size(cell):
    """A guess, by what a row holds."""
    parameters = num_parameters(cell.preset)
    # And gradients in float32.
    room = AVAILABLE[cell.chip] - state(cell, parameters) - 4 * parameters
    # The nearest: a compilation tells as much of its half as of its double.
    return _power_of_two(math.sqrt(2) * max(room, 0) / row_bytes(cell))


def num_parameters(preset):
    """About as many as a published size has: its table and its blocks."""
    size = PUBLISHED_SIZES[preset]
    hidden = size["hidden_dim"]
    return size["vocabulary_size"] * hidden + size["num_layers"] * 12 * hidden**2


def row_bytes(cell):
    """About what a row of a batch takes in a step: logits, and what layers keep.

    The factors are those of steps of v3-xsmall and v3-base: measured over counted.
    """
    size, length = PUBLISHED_SIZES[cell.preset], cell.sequence_length
    logits = 3 * num_mask_positions(length) * size["vocabulary_size"]
    scores = size["num_heads"] * length**2
    layer = 12 * length * size["hidden_dim"] + 6 * scores
    kept = layer
    if cell.gradient_checkpointing:
        kept = 2 * length * size["hidden_dim"]
        # Of the block that is computed again.
        layer += 27 * scores if length == 512 else 0
    counted = logits + layer + size["num_layers"] * kept
    if cell.scan_layers and not cell.gradient_checkpointing:
        # A loop keeps every tensor of a block, those of v3-large took so much more.
        counted *= 2.6
    return counted * {"v5e": 1.2, "v4": 1.7}[cell.chip]


def _power_of_two(number):
    """The largest power of two that is not above a number; at least 1."""
    return 2 ** max(0, int(number).bit_length() - 1)


def table(records):
    """Markdown: of each model, chip and length the largest batches and their memory."""
    head = ["model", "chip", "length", "optimizer", "largest batch", "memory"]
    head += ["with checkpointing", "memory"]
    lines = [head]
    presets = {record["preset"] for record in records}
    for preset, chip, length in itertools.product(PRESETS, CHIPS, LENGTHS):
        cells = [Cell(preset, chip, length, kept) for kept in (False, True)]
        if preset not in presets:
            continue
        line = [preset, chip, str(length), cells[0].optimizer]
        for cell in cells:
            line += entry(cell, records)
        lines.append(line)
    return markdown_table(lines)


def entry(cell, records):
    """[largest batch, memory] of a cell, as text; with a star that of a loop."""
    own = of_cell(cell, records)
    fitting, failing = bounds(own)
    if not own:
        return ["not compiled", ""]
    is_known = next_batch_size(cell, records) is None
    mark = " \\*" if cell.scan_layers else ""
    if fitting is None:
        if is_known and failing > 1:
            most = foretold_of_half(_of_size(failing, own))
            return [f"{failing // 2:,}{mark}", f"≤ {most / 2**30:.1f} GiB"]
        return ["does not fit" if is_known else f"below {failing:,}{mark}", ""]
    memory = f"{peak(_of_size(fitting, own)) / 2**30:.1f} GiB"
    return [f"{fitting:,}{mark}" if is_known else f"{fitting:,}{mark} or more", memory]


if __name__ == "__main__":
    files.run_command(main)
