"""The masked-LM step beside the same geometry as a BERT: time, and what it multiplies.

    python -m tools.benchmark masked_lm

The baseline has no position terms and no enhanced mask decoder, absolute positions at
the input, the same head at the same masked positions. No dropout: it costs both alike.
"""

import math
import statistics
from unittest import mock

import numpy as np
import tensorflow as tf

from deberta_tf import token_prediction
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.masking import num_mask_positions
from deberta_tf.optimization import WarmupLinear, adamw
from tools import timing
from tools.documents import markdown_table, put_table
from tools.tpu_step import BERT

OURS, BASELINE = "DeBERTa", "BERT of the same geometry"
HEAD = ("tokens", "rows", "time, times", "products, times", "s a step", "BERT's")
# Functions of the graph whose body is run once.
CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def add_arguments(parser):
    parser.add_argument("--preset", default="deberta_v3_base", help="a published size")
    parser.add_argument("--num_layers", type=int, help="blocks; none: the preset's")
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--tokens", type=int, default=1024, help="in a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--document", help="file whose table is replaced")


def run(arguments):
    """Prints the table, and puts it into the document."""
    # What TensorFlow keeps of a length's models would stand beside the next one's.
    rows = [timing.in_own_process(row, one, arguments) for one in arguments.lengths]
    table = markdown_table([HEAD, *rows])
    print(table)
    if arguments.document:
        put_table(arguments.document, "masked_lm", table)


def row(length, arguments):
    """One line of the table, str cells."""
    size = max(1, arguments.tokens // length)
    batch, tasks = make_batch(size, length), make_tasks(arguments)
    counts = {name: step_products(task, batch) for name, task in tasks.items()}
    seconds = measure(tasks, batch, arguments.rounds)
    medians = [statistics.median(seconds[name]) for name in (OURS, BASELINE)]
    cells = [
        str(length),
        str(size),
        f"{timing.ratio(seconds, OURS, BASELINE):.2f}",
        f"{counts[OURS] / counts[BASELINE]:.2f}",
        *(f"{one:.2f}" for one in medians),
    ]
    print(*cells, flush=True)
    return cells


def measure(tasks, batch, rounds):
    """{name: seconds of a step in each round}."""
    return timing.in_turns(
        {name: step_of(task, batch) for name, task in tasks.items()}, rounds
    )


def make_tasks(arguments):
    """{name: the compiled task} of one geometry."""
    sizes = {"dropout": 0.0, "attention_dropout": 0.0}
    if arguments.num_layers is not None:
        sizes["num_layers"] = arguments.num_layers
    tasks = {}
    for name, own in ((OURS, {}), (BASELINE, BERT)):
        backbone = DebertaBackbone.from_preset(
            arguments.preset, load_weights=False, **sizes, **own
        )
        tasks[name] = DebertaMaskedLM(backbone)
        tasks[name].compile(adamw(WarmupLinear(1e-4, 1000, 100)), global_clipnorm=1.0)
        tasks[name].build_optimizers()
    return tasks


def make_batch(size, length):
    """What `NgramMasker` gives of rows without padding, with random ids."""
    rng = np.random.default_rng(0)
    count = num_mask_positions(length)
    inputs = {
        "token_ids": tf.constant(rng.integers(5, 1000, (size, length)), "int32"),
        "padding_mask": tf.ones([size, length], "int32"),
        "mask_positions": tf.constant(
            [np.sort(rng.permutation(length - 1)[:count]) + 1 for _ in range(size)],
            "int32",
        ),
    }
    labels = tf.constant(rng.integers(5, 1000, (size, count)), "int32")
    return inputs, labels, tf.ones([size, count])


def step_of(task, batch):
    """A callable that takes a training step."""
    step = tf.function(task.train_step, autograph=False)
    return lambda: float(step(batch)["loss"])


def step_products(task, batch):
    """Floating-point operations of a training step's matrix products.

    Two for each pair of numbers that are multiplied and added.
    """
    step = tf.function(task.train_step, autograph=False)
    # Positions at once: what a loop does is told by no graph.
    with mock.patch.object(token_prediction, "WHOLE", math.inf):
        return products(step.get_concrete_function(batch).graph)


def products(graph):
    """The same of a graph, and of the functions that it calls.

    Raises:
        ValueError: if it has a loop, or a product of an unknown size.
    """
    total = 0
    for operation in graph.get_operations():
        if operation.type in ("While", "StatelessWhile"):
            raise ValueError(f"{operation.name} runs an unknown number of times")
        if operation.type in CALLS:
            name = operation.get_attr("f").name
            total += products(graph._get_function(name).graph)
        elif operation.type in ("MatMul", "BatchMatMulV2"):
            total += _product(operation)
        elif operation.type in ("Einsum", "Conv2D", "BatchMatMul", "BatchMatMulV3"):
            raise ValueError(f"{operation.name}: {operation.type} is not counted")
    return total


def _product(operation):
    transposed = "transpose_a" if operation.type == "MatMul" else "adj_x"
    place = -2 if operation.get_attr(transposed) else -1
    sizes = [*operation.outputs[0].shape, operation.inputs[0].shape[place]]
    if None in sizes:
        raise ValueError(f"{operation.name} is of an unknown size: {sizes}")
    return 2 * math.prod(sizes)
