"""What is served beside onnxruntime on Hugging Face's model of the same weights.

Latency of single examples and throughput of batches, in turn, in one run.
"""

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf

from deberta_tf import files, served_weights
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.published import PUBLISHED_SIZES
from deberta_tf.serving import write_saved_model
from deberta_tf.tasks import DebertaTextClassifier
from tools import timing

# In the environment of the reference tests.
try:
    import onnxruntime
except ImportError:
    onnxruntime = None

THREADS = 2
# Logits of the same weights in float32 are this close, or nothing is timed.
TOLERANCE = 1e-4
FOREIGN = "onnxruntime, Hugging Face"
NEEDED = ("onnxruntime", "onnx", "torch", "transformers")


def add_sizes(parser):
    """The flag of what is measured."""
    parser.add_argument(
        "--sizes",
        nargs="+",
        choices=list(PUBLISHED_SIZES),
        default=["deberta_v3_small", "deberta_v3_base"],
        help="published geometries, with random weights",
    )


def add_arguments(parser):
    add_sizes(parser)
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[16, 64, 128, 384], help="in tokens"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        choices=served_weights.WEIGHTS,
        default=list(served_weights.WEIGHTS),
        help="of ours, as tools.export_saved_model takes them",
    )
    parser.add_argument(
        "--batch_size", type=int, default=8, help="examples a call, for throughput"
    )
    parser.add_argument("--rounds", type=int, default=7)


def run(arguments):
    """Prints a table for each size."""
    if min(arguments.lengths) < 2:
        raise files.UsageError("lengths must be at least 2")
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    missing = missing_packages()
    if missing:
        print(f"left out: {FOREIGN}; not installed: {', '.join(missing)}")
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            contenders = make_contenders(size, arguments.weights, folder, missing)
            print_table(size, contenders, arguments)


def missing_packages():
    """Names of packages without which there is nothing to compare with."""
    found = {name: importlib.util.find_spec(name) for name in NEEDED}
    return [name for name, spec in found.items() if spec is None]


def make_contenders(size, weights, folder, missing):
    """{name: function from ids (b, l) to a callable that gives their logits}."""
    task = make_task(size)
    contenders = {
        f"deberta_tf, {one}": served(task, one, os.path.join(folder, one))
        for one in weights
    }
    if not missing:
        contenders[FOREIGN] = foreign(task, folder)
    return contenders


def make_task(size):
    """A classifier of a published geometry, with random weights."""
    backbone = DebertaBackbone.from_preset(size, load_weights=False)
    return DebertaTextClassifier(backbone, num_classes=2)


def served(task, weights, directory):
    """The contender that runs our SavedModel's signature of ids.

    It is what `export_for_serving` writes, without the signatures of strings.
    """
    copy = served_weights.with_weights(task, weights)
    with copy.backbone.encoder.folded_positions() as tables:
        if weights == "int8":
            served_weights.quantize(copy)
        write_saved_model(copy, {}, directory, tables)
    model = tf.saved_model.load(directory)
    signature = model.signatures["token_ids"]

    def bind(token_ids):
        inputs = {
            "token_ids": tf.constant(token_ids, tf.int32),
            "padding_mask": tf.ones(token_ids.shape, tf.int32),
        }
        # The signature does not keep its model alive.
        return lambda model=model: signature(**inputs)["logits"].numpy()

    return bind


def foreign(task, folder):
    """The contender that runs Hugging Face's model of the task's weights."""
    path = os.path.join(folder, "model.onnx")
    theirs = os.path.join(folder, "huggingface")
    task.save_to_huggingface(theirs)
    command = [sys.executable, "-m", "tools.onnx_export", theirs, path]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"no ONNX file was exported: {done.stderr[-2000:]}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )

    def bind(token_ids):
        inputs = {
            "input_ids": token_ids.astype(np.int64),
            "attention_mask": np.ones(token_ids.shape, np.int64),
        }
        return lambda: session.run(["logits"], inputs)[0]

    return bind


def print_table(size, contenders, arguments):
    """Prints a table in Markdown, row after row."""
    batch_size, last = arguments.batch_size, list(contenders)[-1]
    print(f"\n{size}, {THREADS} threads, {arguments.rounds} rounds\n")
    print(
        "| tokens | contender | p50 of one example (ms) | times | "
        f"examples/s in batches of {batch_size} | times | largest difference |"
    )
    print("|---|---|---|---|---|---|---|")
    for length in arguments.lengths:
        ids = make_ids(batch_size, length)
        gaps = differences(contenders, ids)
        single, batches = (
            in_turns(contenders, some, arguments.rounds) for some in (ids[:1], ids)
        )
        for name in contenders:
            latency = 1e3 * statistics.median(single[name])
            speed = batch_size / statistics.median(batches[name])
            print(
                f"| {length} | {name} | {latency:.1f} | "
                f"{timing.ratio(single, last, name):.2f} | {speed:.1f} | "
                f"{timing.ratio(batches, last, name):.2f} | {gaps[name]:.0e} |",
                flush=True,
            )


def make_ids(batch_size, length):
    """Ids (b, l), none of them special, in every vocabulary."""
    return np.random.default_rng(0).integers(5, 100, (batch_size, length))


def differences(contenders, ids):
    """{name: largest difference of its logits from the last contender's}.

    Raises:
        RuntimeError: if the weights are the same in float32, and the logits not.
    """
    logits = {name: bind(ids)() for name, bind in contenders.items()}
    expected = list(logits.values())[-1]
    gaps = {name: np.abs(found - expected).max() for name, found in logits.items()}
    wrong = gaps.get("deberta_tf, float32", 0.0)
    if FOREIGN in contenders and not wrong <= TOLERANCE:
        raise RuntimeError(
            f"logits differ by {wrong:.1e} at {ids.shape[1]} tokens, more than "
            f"{TOLERANCE}: what is timed is not the same"
        )
    return gaps


def in_turns(contenders, ids, rounds):
    """Seconds a call of each contender on the same ids, as `timing.in_turns`."""
    calls = {name: bind(ids) for name, bind in contenders.items()}
    return timing.in_turns(calls, rounds)
