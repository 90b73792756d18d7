"""The encoder beside KerasHub's and Hugging Face's: forward pass, step, memory.

    python -m tools.benchmark encoder
    .venv-reference/bin/python -m tools.benchmark encoder --lengths 128 512
    python -m tools.benchmark encoder --memory

Each length's contenders run in turn, in one process; ratios are medians over rounds.
"""

import itertools
import os
import statistics

import matplotlib

# Imports PyTorch, where it is installed, before TensorFlow.
from tools import encoders  # isort: split

import tensorflow as tf

matplotlib.use("agg")
from matplotlib import pyplot, ticker

from deberta_tf import files
from deberta_tf.attention_forms import ATTENTION_FORMS
from tools import timing
from tools.documents import markdown_table, put_table

THREADS = 2
PASSES = ("forward", "train")
LENGTHS = (64, 128, 256, 512, 1024, 2048)
MEMORY_LENGTHS = (512, 1024, 2048, 4096)
# In a batch, up to a length of which one row has as many or more.
TOKENS = 1024
HEAD = ("tokens", "rows", "compiled", "pass", "contender", "ms", "ours against it")


def add_arguments(parser):
    parser.add_argument("--lengths", nargs="+", type=int, help="in tokens")
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=("graph", "xla"),
        default=["graph", "xla"],
        help="how TensorFlow runs: op by op, or compiled",
    )
    parser.add_argument("--attention_form", choices=ATTENTION_FORMS, default="auto")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="in place of times: what a forward pass takes at most, each in a process",
    )
    parser.add_argument("--plot", help="with --memory: file of a picture")
    parser.add_argument("--document", help="file whose table is replaced")


def run(arguments):
    """Prints the table, and puts it into the document."""
    lengths = arguments.lengths
    if lengths and min(lengths) <= encoders.PADDED:
        raise files.UsageError(f"lengths must be more than {encoders.PADDED}")
    if arguments.memory:
        name, table = "encoder_memory", memory_table(arguments)
    else:
        limit_threads()
        name, table = "encoder", time_table(arguments)
    print(table)
    if arguments.document:
        put_table(arguments.document, name, table)


def limit_threads():
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)


def batch_size(length):
    """Rows of a batch, one from `TOKENS` tokens on."""
    return max(1, TOKENS // length)


def time_table(arguments):
    rows = []
    lengths = arguments.lengths or LENGTHS
    for length, mode in itertools.product(lengths, arguments.modes):
        for which, seconds in measure(length, mode, arguments).items():
            for name, found in seconds.items():
                ratio = timing.ratio(seconds, encoders.OURS, name)
                rows.append(
                    [
                        str(length),
                        str(batch_size(length)),
                        mode if name in encoders.TENSORFLOW_NAMES else "",
                        which,
                        name,
                        f"{1e3 * statistics.median(found):,.0f}",
                        "" if name == encoders.OURS else f"{ratio:.2f}",
                    ]
                )
                print(*rows[-1], flush=True)
    return markdown_table([HEAD, *rows])


def measure(length, mode, arguments, names=None):
    """{pass: {contender: seconds of each round}} of one length.

    Args:
        length: int.
        mode: "graph" or "xla".
        arguments: with `num_layers`, `rounds`, `passes` and `attention_form`.
        names: contenders; None: all that are installed.
    """
    if names is None:
        # PyTorch is no faster where TensorFlow is compiled.
        others = mode == "graph" and encoders.torch is not None
        names = encoders.TENSORFLOW_NAMES + (encoders.PYTORCH_NAMES if others else ())
    ids, mask = encoders.make_ids(batch_size(length), length)
    layers = arguments.num_layers
    calls = {}
    for name in names:
        if name in encoders.PYTORCH_NAMES:
            calls[name] = encoders.pytorch_calls(name, layers, ids, mask, THREADS)
        else:
            calls[name] = encoders.tensorflow_calls(
                name,
                layers,
                ids,
                mask,
                jit_compile=mode == "xla",
                attention_form=arguments.attention_form,
            )
    return {
        which: timing.in_turns(
            {name: one[which] for name, one in calls.items()}, arguments.rounds
        )
        for which in arguments.passes
    }


def memory_table(arguments):
    lengths = arguments.lengths or MEMORY_LENGTHS
    names = (encoders.OURS, encoders.GATHER, encoders.KERAS_HUB, encoders.BERT)
    found = {
        (name, length): timing.in_own_process(
            peak_of_forward, name, length, arguments.num_layers
        )
        for name in names
        for length in lengths
    }
    if arguments.plot:
        plot(found, names, lengths, arguments.plot)
    rows = [
        [name, *(f"{found[name, length] / 2**20:,.0f}" for length in lengths)]
        for name in names
    ]
    return markdown_table([["MiB at a length of", *map(str, lengths)], *rows])


def peak_of_forward(name, length, num_layers):
    """Bytes that this process grew by at most in a forward pass of one row."""
    ids, mask = encoders.make_ids(1, length)
    forward = encoders.tensorflow_calls(name, num_layers, ids, mask)["forward"]
    # What TensorFlow takes once, and the weights, are no part of it.
    small = encoders.make_ids(1, 8)
    encoders.tensorflow_calls(name, 1, *small)["forward"]()
    return timing.growth(forward)


def plot(found, names, lengths, path):
    """Draws memory against length, both logarithmic."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name in names:
        sizes = [found[name, length] / 2**20 for length in lengths]
        axes.plot(lengths, sizes, marker="o", label=name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="tokens of the row",
        ylabel="MiB of a forward pass, at most",
        xticks=lengths,
        xticklabels=lengths,
    )
    # Their labels would stand upon those of the lengths.
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = f"{os.path.splitext(path)[0]}.partial.png"
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)
