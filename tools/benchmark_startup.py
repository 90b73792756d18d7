"""How long a program takes to begin: imports, and the first training step.

    python -m tools.benchmark startup

Imports are timed in fresh processes, in turn. The first step of a narrow model is
nearly all tracing and, under XLA, compiling; each one in a process of its own.
"""

import statistics
import subprocess
import sys
import time

import tensorflow as tf

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.optimization import WarmupLinear, adamw
from deberta_tf.tasks import DebertaTextClassifier
from tools import timing
from tools.documents import markdown_table

MODULES = ("keras_hub", "deberta_tf")
# Narrow: what is computed takes next to no time.
HEADS, WIDTH, VOCABULARY = 2, 32, 100
BATCH, LENGTH = 2, 32


def add_arguments(parser):
    parser.add_argument("--layers", nargs="+", type=int, default=[12, 24, 48])
    parser.add_argument("--rounds", type=int, default=5, help="of the imports")


def run(arguments):
    seconds = import_times(arguments.rounds)
    ratio = timing.ratio(seconds, "deberta_tf", "keras_hub")
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    print(
        f"import deberta_tf {medians['deberta_tf']:.2f} s, keras_hub alone "
        f"{medians['keras_hub']:.2f} s: {ratio:.2f} times"
    )
    rows = [["layers", "first step, s", "one after it", "as a loop", "one after it"]]
    for layers in arguments.layers:
        found = [
            timing.in_own_process(first_steps, layers, scan) for scan in (False, True)
        ]
        rows.append([str(layers), *(f"{one:.2f}" for pair in found for one in pair)])
        print(*rows[-1], flush=True)
    print(markdown_table(rows))


def import_times(rounds):
    """{module: seconds of its import in each round}."""
    seconds = {name: [] for name in MODULES}
    for _ in range(rounds):
        for name in MODULES:
            seconds[name].append(import_seconds(name))
    return seconds


def import_seconds(name):
    """Seconds of an import in a fresh process, its start left out."""
    code = (
        "import time; began = time.perf_counter(); "
        f"import {name}; print(time.perf_counter() - began)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


def first_steps(layers, scan):
    """Seconds of the first training step under XLA, and of the one after it."""
    backbone = DebertaBackbone(
        VOCABULARY, layers, HEADS, WIDTH, 4 * WIDTH, scan_layers=scan
    )
    task = DebertaTextClassifier(backbone, num_classes=2)
    task.compile(adamw(WarmupLinear(1e-4, 1000, 100)), global_clipnorm=1.0)
    task.build_optimizers()
    step = tf.function(task.train_step, jit_compile=True, autograph=False)
    inputs = {
        "token_ids": tf.ones([BATCH, LENGTH], tf.int32),
        "padding_mask": tf.ones([BATCH, LENGTH], tf.int32),
    }
    batch = inputs, tf.zeros([BATCH], tf.int32)
    found = []
    for _ in range(2):
        began = time.perf_counter()
        float(step(batch)["loss"])
        found.append(time.perf_counter() - began)
    return found
