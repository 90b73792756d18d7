"""Compiles a training step for a TPU that is not there, and tells what it costs.

    python -m tools.tpu_compile --preset deberta_v3_xsmall --objective masked_lm \\
        --batch_size 8 --sequence_length 128 --chip v5e

It is the step that `fit` runs on one replica: forward and backward pass, clipping,
AdamW. What replicas do together, the sums of gradients, is not in that program. Fails
(exit code 1) where a gather or scatter goes over attention scores.
"""

import collections
import json
import os
import re
import signal
import subprocess
import tempfile

import tensorflow as tf

from deberta_tf import files
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.masking import num_mask_positions
from deberta_tf.optimization import WarmupLinear, adafactor, adamw
from deberta_tf.replaced_token import DebertaReplacedTokenDetection, make_generator
from deberta_tf.sift import ScaleInvariantFineTuning
from deberta_tf.tasks import DebertaTextClassifier

# One chip of each, and how its cores are taken: the two of a v4 are one device, as
# TensorFlow and JAX have them (of a v5p that is the default, the others have one). And
# its memory in bytes: from the pages of Google Cloud on the architecture of each.
TOPOLOGIES = {
    "v4": ("v4:1x1x1", "megacore"),
    "v5e": ("v5e:1x1",),
    "v5p": ("v5p:1x1x1",),
    "v6e": ("v6e:1x1",),
}
MEMORY = {"v4": 32 * 2**30, "v5e": 16 * 2**30, "v5p": 95 * 2**30, "v6e": 32 * 2**30}
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception): ")
OPTIMIZERS = {"adamw": adamw, "adafactor": adafactor}
OBJECTIVES = ("masked_lm", "replaced_token", "classification")


class OutOfMemory(files.UsageError):
    """A step needs more memory than the chip has; the message says how much."""


def main(argv=None):
    options = parse(argv)
    task = make_task(options)
    check_size(task.backbone, options)
    return tell(options, task, compile_step(task, options))


def parse(argv):
    """The options of a compilation, checked.

    Raises:
        UsageError: if one of them is wrong.
    """
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", required=True, help="a published size")
    parser.add_argument("--objective", choices=OBJECTIVES, default="masked_lm")
    parser.add_argument("--batch_size", type=int, default=8, help="rows (%(default)s)")
    parser.add_argument(
        "--sequence_length", type=int, default=128, help="tokens (%(default)s)"
    )
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    parser.add_argument("--chip", choices=sorted(TOPOLOGIES), default="v5e")
    parser.add_argument(
        "--precision", default="mixed_bfloat16", help="Keras dtype policy (%(default)s)"
    )
    parser.add_argument(
        "--attention_form", default="auto", help="as the trainers' flag"
    )
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument(
        "--sift", action="store_true", help="the step of scale-invariant fine-tuning"
    )
    parser.add_argument("--scan_layers", action="store_true")
    parser.add_argument(
        "--num_layers", type=int, help="blocks, for a quick look; none: the preset's"
    )
    parser.add_argument(
        "--tpu_python",
        default=".venv-tpu/bin/python",
        help="Python of the environment of requirements-tpu-check.txt (%(default)s)",
    )
    options = parser.parse_args(argv)
    _check(options)
    return options


def _check(options):
    for name in ("batch_size", "sequence_length", "num_layers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise files.UsageError(f"--{name} must be at least 1; got {value}")
    if options.sift and options.objective == "replaced_token":
        raise files.UsageError("--sift is for fine-tuning, not for replaced_token")
    if not os.path.exists(options.tpu_python):
        raise files.UsageError(
            f"--tpu_python: no {options.tpu_python!r}; make tpu-check makes it"
        )


def without_memory(next_creator, **kwargs):
    """Makes variables whose memory is never written, and so never taken."""
    value = kwargs["initial_value"]
    if callable(value):
        # Its shape, without its numbers.
        with tf.Graph().as_default():
            value = value()
    value = value if tf.is_tensor(value) else tf.convert_to_tensor(value)
    # Of small ones (counters, seeds) the values may be read while tracing.
    if value.shape.num_elements() > 1024:
        shape, dtype = value.shape.as_list(), value.dtype
        kwargs["initial_value"] = lambda: tf.raw_ops.Empty(
            shape=shape, dtype=dtype, init=False
        )
    return next_creator(**kwargs)


def make_task(options):
    """The task of an objective, compiled as the trainers compile it, without memory."""
    with tf.variable_creator_scope(without_memory):
        return _make_task(options)


def _make_task(options):
    overrides = {} if options.num_layers is None else {"num_layers": options.num_layers}
    backbone = DebertaBackbone.from_preset(
        options.preset,
        load_weights=False,
        dtype=options.precision,
        attention_form=options.attention_form,
        gradient_checkpointing=options.gradient_checkpointing,
        scan_layers=options.scan_layers,
        **overrides,
    )
    optimizers = [_optimizer(options)]
    if options.objective == "masked_lm":
        task = DebertaMaskedLM(backbone)
    elif options.objective == "classification":
        task = DebertaTextClassifier(backbone, num_classes=2)
    else:
        task = DebertaReplacedTokenDetection(backbone, make_generator(backbone))
        optimizers.append(_optimizer(options))
    task.compile(*optimizers, global_clipnorm=1.0)
    task.build_optimizers()
    return ScaleInvariantFineTuning(task) if options.sift else task


def _optimizer(options):
    return OPTIMIZERS[options.optimizer](WarmupLinear(1e-4, 1000, 100))


def compile_step(task, options):
    """What `tools/tpu_backend.py` tells of a training step.

    Raises:
        OutOfMemory: if the step needs more memory than the chip has.
        UsageError: if the compiler refuses it, with its reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "step.pb")
        with open(path, "wb") as file:
            file.write(serialized_step(task, options))
        return compile_for(options, path)


def serialized_step(task, options):
    """The HLO of one training step, serialized."""
    step = tf.function(task.train_step, jit_compile=True, autograph=False)
    get_ir = step.experimental_get_compiler_ir(make_batch(options))
    return get_ir(stage="hlo_serialized")


def make_batch(options):
    """A batch of the shapes that the trainers give."""
    shape = (options.batch_size, options.sequence_length)
    inputs = {
        "token_ids": tf.zeros(shape, tf.int32),
        "padding_mask": tf.ones(shape, tf.int32),
    }
    if options.objective == "classification":
        return inputs, tf.zeros(shape[:1], tf.int32)
    places = (options.batch_size, num_mask_positions(options.sequence_length))
    inputs["mask_positions"] = tf.zeros(places, tf.int32)
    return inputs, tf.zeros(places, tf.int32), tf.ones(places, tf.float32)


def compile_for(options, path):
    """What `tools/tpu_backend.py` tells of a module; raises as `compile_step`."""
    program = os.path.join(os.path.dirname(__file__), "tpu_backend.py")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(
        [options.tpu_python, program, path, *TOPOLOGIES[options.chip]],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = _reason(done)
        kind = OutOfMemory if "HbmOom" in reason else files.UsageError
        raise kind(f"the compiler for {options.chip} failed: {reason}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _reason(done):
    """Why a program failed: the line of its exception, or the signal that ended it."""
    if done.returncode < 0:
        return f"ended by {signal.Signals(-done.returncode).name}"
    lines = done.stderr.strip().splitlines() or ["no reason was given"]
    # Links to more may follow it, and warnings stand before it.
    return next(filter(_EXCEPTION.match, lines[::-1]), lines[-1])


def tell(options, task, report):
    """Prints a report; returns the exit code."""
    # What a step updates takes the place of what it was.
    peak = report["arguments"] + report["temporaries"] + report["code"]
    share = peak / MEMORY[options.chip]
    print(
        f"{options.objective}{' with SiFT' if options.sift else ''} of "
        f"{options.preset}, {task.count_params():,} parameters, "
        f"{options.batch_size} x {options.sequence_length}, on one {options.chip}\n"
        f"compiled in {report['seconds']:.0f} s; {report['flops'] / 1e9:,.1f} GFLOP, "
        f"{report['bytes'] / 1e9:,.2f} GB moved a step\n"
        f"memory {peak / 2**20:,.0f} MiB ({share:.0%} of the chip): state and batch "
        f"{report['arguments'] / 2**20:,.0f}, temporaries "
        f"{report['temporaries'] / 2**20:,.0f}, program {report['code'] / 2**20:,.0f}\n"
        "sums over replicas are not part of this program"
    )
    for (kind, origin), count in sorted(by_origin(report["operations"]).items()):
        print(f"{count:4d} x {kind} of {origin}")
    found = over_scores(report["operations"], num_scores(task.backbone, options))
    for one in found:
        print(f"over scores: {one['kind']} of {one['operation']}, {one['elements']:,}")
    return 1 if found else 0


def by_origin(operations):
    """{(kind, TensorFlow operation and layer): count}; blocks are taken together."""
    return collections.Counter(
        (one["kind"], _origin(one["operation"])) for one in operations
    )


def _origin(operation):
    # What is called a second time has a number more.
    operation = re.sub(r"block(_\d+)+", "block_*", operation)
    return re.sub(r"(_\d+)+(?=/|$)", "", operation) or "unknown"


def num_scores(backbone, options):
    """Attention scores of the layer that has the fewest: of masks, a query a place."""
    length = options.sequence_length
    queries = length
    if options.objective != "classification":
        queries = min(length, num_mask_positions(length))
    return options.batch_size * backbone.num_heads * queries * length


def check_size(backbone, options):
    """Refuses a batch that is so small that a table could be taken for scores.

    Raises:
        UsageError: if a layer has no more scores than there are elements in the rows
            of a table of positions.
    """
    # A row for each distance.
    table = 2 * options.sequence_length * backbone.num_heads * backbone.head_dim
    scores = num_scores(backbone, options)
    if scores <= table:
        raise files.UsageError(
            f"{options.batch_size} x {options.sequence_length} is too small to tell "
            f"scores from tables: {scores:,} against {table:,} elements"
        )


def over_scores(operations, scores):
    """Those within attention that move as many elements as there are scores."""
    return [
        one
        for one in operations
        if "attention" in one["operation"] and one["elements"] >= scores
    ]


if __name__ == "__main__":
    files.run_command(main)
