"""Measures parts of the project beside other libraries', in turn, in one run.

    python -m tools.benchmark masking --sequence_length 512 --batch_size 64

Each contender does the same work in turn, round after round; medians are reported. What
is not installed is left out, and said so.
"""

import os
import statistics
import tempfile

# Of the environment of the reference tests, else None. Before TensorFlow: loaded after
# it, PyTorch crashes.
from tools.encoders import transformers  # isort: split

import keras_hub
import numpy as np
import tensorflow as tf

from deberta_tf import files
from deberta_tf.masking import NgramMasker
from deberta_tf.rows import PretrainingRows, write_rows
from tools import (
    benchmark_check,
    benchmark_encoder,
    benchmark_masked_lm,
    benchmark_predict,
    benchmark_serving,
    benchmark_sift,
    benchmark_startup,
    timing,
)

VOCABULARY = 32_000
SPECIAL = {"pad": 0, "cls": 1, "sep": 2, "unk": 3, "mask": VOCABULARY - 1}
MASK_RATE = 0.15
# Commands that have a module: its `add_arguments` and `run`, and their help.
BESIDE_OTHERS = {
    "encoder": (
        benchmark_encoder,
        "the encoder beside KerasHub's and Hugging Face's",
    ),
    "masked_lm": (
        benchmark_masked_lm,
        "the masked-LM step beside that of BERT: time, products",
    ),
    "startup": (
        benchmark_startup,
        "imports, and the first training step of 12 to 48 layers",
    ),
    "serving": (
        benchmark_serving,
        "an exported classifier beside onnxruntime: latency, throughput",
    ),
    "predict": (
        benchmark_predict,
        "texts a second, beside Hugging Face's pipeline",
    ),
}


class MadeUpTokenizer:
    """What rows and maskers ask a tokenizer for; every third token continues a word."""

    pad_token_id, cls_token_id, sep_token_id = SPECIAL["pad"], 1, 2
    unk_token_id, mask_token_id = 3, SPECIAL["mask"]
    special_token_ids = tuple(SPECIAL.values())

    def vocabulary_size(self):
        return VOCABULARY

    def continues_word(self):
        return np.arange(VOCABULARY) % 3 == 0

    def fingerprint(self):
        return "made up"


def main(argv=None):
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    guard = parser.add_mutually_exclusive_group()
    guard.add_argument(
        "--check",
        action="store_true",
        help="measure the ratios of docs/benchmarks.json again, and compare",
    )
    guard.add_argument("--record", action="store_true", help="write that file")
    commands = parser.add_subparsers(dest="command")
    masking = commands.add_parser(
        "masking", help="reading, masking and batching rows: tokens a second and core"
    )
    for name, value in {
        "sequence_length": 512,
        "batch_size": 64,
        "num_batches": 100,
        "rounds": 5,
    }.items():
        masking.add_argument(f"--{name}", type=int, default=value)
    masking.set_defaults(run=benchmark_masking)
    sift = commands.add_parser(
        "sift", help="a step of scale-invariant fine-tuning beside a plain one"
    )
    for name, value in {"sequence_length": 128, "batch_size": 16, "rounds": 9}.items():
        sift.add_argument(f"--{name}", type=int, default=value)
    sift.add_argument("--jit_compile", action="store_true", help="under XLA")
    sift.add_argument("--precision", default="float32", help="Keras dtype policy")
    sift.set_defaults(run=benchmark_sift_step)
    for name, (module, told) in BESIDE_OTHERS.items():
        command = commands.add_parser(name, help=told)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    if arguments.command and (arguments.check or arguments.record):
        raise files.UsageError(f"--check and --record go without {arguments.command}")
    if arguments.check or arguments.record:
        return benchmark_check.check() if arguments.check else benchmark_check.record()
    if arguments.command is None:
        raise files.UsageError(
            "a command is wanted, or --check or --record: see --help"
        )
    names = ("batch_size", "num_batches", "num_layers", "rounds", "sequence_length")
    for name in names:
        value = getattr(arguments, name, None)
        if value is not None and value < 1:
            raise files.UsageError(f"{name} must be at least 1")
    arguments.run(arguments)


def benchmark_sift_step(arguments):
    """Prints time and memory of a step, and how many times those of the plain one."""
    memory = benchmark_sift.memory(arguments)
    durations = timing.in_turns(
        benchmark_sift.steps(arguments), arguments.rounds, seconds_a_turn=0
    )
    for name, seconds in durations.items():
        print(
            f"{name:28} {statistics.median(seconds):7.3f} s a step, "
            f"{timing.ratio(durations, name, 'plain'):.2f} times; "
            f"{memory[name] / 2**20:,.0f} MiB, "
            f"{memory[name] / memory['plain']:.2f} times"
        )


def benchmark_masking(arguments):
    """Prints tokens a second of one core, for each library."""
    # TensorFlow, PyTorch and NumPy alike: this process has one core.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = make_rows(os.path.join(folder, "rows"), arguments)
        contenders = {
            "deberta_tf, spans of up to 3 words": our_masking(rows, arguments, 3),
            "deberta_tf, single tokens": our_masking(rows, arguments, 1),
            "KerasHub MaskedLMMaskGenerator": keras_hub_masking(rows, arguments),
        }
        if transformers is None:
            print("left out: transformers is not installed")
        else:
            contenders |= collators(rows, arguments)
        report(contenders, arguments)


def make_rows(folder, arguments):
    """Rows of random tokens, as many as are read."""
    count = arguments.batch_size * arguments.num_batches
    rng = np.random.default_rng(0)
    shape = (count, arguments.sequence_length)
    token_ids = rng.integers(4, VOCABULARY - 1, shape).astype(np.uint32)
    token_ids[:, 0], token_ids[:, -1] = SPECIAL["cls"], SPECIAL["sep"]
    write_rows(folder, [token_ids], MadeUpTokenizer())
    return PretrainingRows(folder)


def report(contenders, arguments):
    """Runs the contenders in turn, and prints medians and ratios to the first."""
    tokens = arguments.batch_size * arguments.num_batches * arguments.sequence_length
    durations = timing.in_turns(contenders, arguments.rounds, seconds_a_turn=0)
    speeds = {name: tokens / statistics.median(d) for name, d in durations.items()}
    first = next(iter(speeds.values()))
    for name, speed in speeds.items():
        print(f"{name:44} {speed / 1e6:8.2f} M tokens/s {first / speed:8.2f}")


def our_masking(rows, arguments, max_ngram):
    """Rows by number, read and masked in tf.data, as the trainer does."""
    masker = NgramMasker.of_tokenizer(
        MadeUpTokenizer(), mask_rate=MASK_RATE, max_ngram=max_ngram
    )
    size = arguments.batch_size

    def masked(step):
        n = step * size + tf.range(size, dtype=tf.int64)
        token_ids = tf.numpy_function(rows.take, [n], tf.uint32, stateful=False)
        token_ids.set_shape((size, arguments.sequence_length))
        return masker(tf.cast(token_ids, tf.int32), token_ids != 0, 1, n)

    dataset = tf.data.Dataset.range(arguments.num_batches).map(masked)
    return counter(dataset, arguments.num_batches)


def keras_hub_masking(rows, arguments):
    """The same rows through KerasHub's layer, in tf.data."""
    places = int(MASK_RATE * arguments.sequence_length)
    generator = keras_hub.layers.MaskedLMMaskGenerator(
        vocabulary_size=VOCABULARY,
        mask_selection_rate=MASK_RATE,
        mask_token_id=SPECIAL["mask"],
        mask_selection_length=places,
        unselectable_token_ids=list(SPECIAL.values()),
    )
    dataset = batches_of(rows, arguments).map(
        lambda token_ids: generator(tf.cast(token_ids, tf.int32))
    )
    return counter(dataset, arguments.num_batches)


def batches_of(rows, arguments):
    """tf.data.Dataset of the rows' token ids."""
    size = arguments.batch_size

    def read(step):
        n = step * size + tf.range(size, dtype=tf.int64)
        token_ids = tf.numpy_function(rows.take, [n], tf.uint32, stateful=False)
        token_ids.set_shape((size, arguments.sequence_length))
        return token_ids

    return tf.data.Dataset.range(arguments.num_batches).map(read)


def counter(dataset, num_batches):
    """A callable that runs through a dataset of so many batches."""

    def run():
        seen = sum(1 for _ in dataset)
        if seen != num_batches:
            raise RuntimeError(f"{seen} batches of {num_batches}")

    return run


def collators(rows, arguments):
    """Hugging Face's collator of masked language models, fed with the same rows.

    Its masking of whole words (transformers 5) wants offsets into the text, which rows
    of ids do not have.
    """
    words = [f"token{i}" if i % 3 else f"##token{i}" for i in range(VOCABULARY)]
    for name, place in SPECIAL.items():
        words[place] = f"[{name.upper()}]"
    with tempfile.TemporaryDirectory() as folder:
        files.atomic_write(os.path.join(folder, "vocab.txt"), "\n".join(words))
        tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    collator = transformers.DataCollatorForLanguageModeling(
        tokenizer=tokenizer, mlm_probability=MASK_RATE
    )
    return {"Hugging Face, single tokens": collating(collator, rows, arguments)}


def collating(collator, rows, arguments):
    """A callable that collates all batches of the rows."""
    size = arguments.batch_size

    def run():
        for step in range(arguments.num_batches):
            taken = rows.take(np.arange(step * size, (step + 1) * size))
            examples = [{"input_ids": row} for row in taken.astype(np.int64)]
            if "labels" not in collator(examples):
                raise RuntimeError("nothing is masked")

    return run


if __name__ == "__main__":
    files.run_command(main)
