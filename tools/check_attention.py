"""Checks the forms of disentangled attention on this machine's device, and times them.

    python -m tools.check_attention --lengths 128 512

On a TPU VM it is the one command that tells whether the fused kernel computes what it
should there, and how long it takes. Output and gradients of one layer are compared with
those of the plain gather in float32 on the CPU; what that one in bfloat16 is off by
sets the bound. Exit code 1 where a form is off by more.
"""

import statistics

import keras
import numpy as np
import tensorflow as tf

from deberta_tf import files, fused_attention
from deberta_tf.attention import DisentangledSelfAttention
from deberta_tf.attention_forms import ATTENTION_FORMS
from deberta_tf.relative_position import RelativePositions
from tools import timing

POSITIONS = RelativePositions(256, 512)
# How many times the error of the plain gather in bfloat16 on the CPU: a TPU multiplies
# float32 as bfloat16, too, and rounds in another order.
BOUND = 2.0
PADDED = 3
DEVICES = ("TPU", "GPU", "CPU")


def main(argv=None):
    arguments = parse(argv)
    device = arguments.device or found_device()
    forms = arguments.forms or default_forms()
    if "fused" in forms:
        check_fused(arguments, device)
    print(f"device {device}, {arguments.precision}, forms {', '.join(forms)}")
    wrong = False
    for length in arguments.lengths:
        batch_size = max(1, arguments.tokens // length)
        inputs = make_inputs(batch_size, length, arguments)
        expected = run("gather", "float32", inputs, arguments, "CPU:0")()
        half = run("gather", "mixed_bfloat16", inputs, arguments, "CPU:0")()
        bound = BOUND * largest_error(half, expected)
        calls = {
            form: run(form, arguments.precision, inputs, arguments, device)
            for form in forms
        }
        seconds = timing.in_turns(calls, arguments.rounds)
        for form, call in calls.items():
            error = largest_error(call(), expected)
            verdict = "equal" if error < bound else "WRONG"
            wrong |= verdict != "equal"
            print(
                f"{batch_size} x {length} {form:8} "
                f"{1e3 * statistics.median(seconds[form]):9.2f} ms forward and "
                f"backward, {timing.ratio(seconds, form, forms[0]):.2f} times "
                f"{forms[0]}; error {error:.4f} (bound {bound:.4f}): {verdict}",
                flush=True,
            )
    return 1 if wrong else 0


def parse(argv):
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--forms", nargs="+", choices=ATTENTION_FORMS[1:])
    parser.add_argument("--precision", default="mixed_bfloat16", help="Keras policy")
    parser.add_argument("--device", help="such as TPU:0; none: the best there is")
    parser.add_argument("--num_heads", type=int, default=12)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4096, help="of a batch")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args(argv)
    for name in ("num_heads", "head_dim", "tokens", "rounds"):
        if getattr(arguments, name) < 1:
            raise files.UsageError(f"--{name} must be at least 1")
    if min(arguments.lengths) <= PADDED:
        raise files.UsageError(f"--lengths must be more than {PADDED}")
    return arguments


def found_device():
    return next(f"{kind}:0" for kind in DEVICES if tf.config.list_logical_devices(kind))


def check_fused(arguments, device):
    """Refuses to check the kernel where something else would take its place."""
    if not device.startswith("TPU"):
        raise files.UsageError(f"--forms fused is for a TPU; the device is {device}")
    for length in arguments.lengths:
        shape = max(1, arguments.tokens // length), length
        dtype = keras.dtype_policies.get(arguments.precision).compute_dtype
        reason = fused_attention.unfit(
            arguments.num_heads, arguments.head_dim, shape, dtype
        )
        if reason:
            raise files.UsageError(f"--forms fused does not fit: {reason}")


def default_forms():
    fused = ["fused"] if fused_attention.is_at_hand() else []
    return ["shift", "product", *fused]


def make_inputs(batch_size, length, arguments):
    rng = np.random.default_rng(0)
    width = arguments.num_heads * arguments.head_dim
    mask = np.ones((batch_size, length), bool)
    mask[0, length - PADDED :] = False
    return {
        "query": rng.normal(size=(batch_size, length, width)).astype("float32"),
        "relative_embeddings": rng.normal(size=(POSITIONS.num_rows, width)).astype(
            "float32"
        ),
        "attention_mask": mask,
    }


def run(form, precision, inputs, arguments, device):
    """A callable that gives output and gradients, compiled but on a CPU."""
    width = arguments.num_heads * arguments.head_dim
    layer = DisentangledSelfAttention(
        arguments.num_heads,
        arguments.head_dim,
        POSITIONS,
        attention_form=form,
        dtype=precision,
    )
    with tf.device(device):
        layer.build(inputs["query"].shape)
        rng = np.random.default_rng(1)
        for weight in layer.weights:
            # Scores of about 1: where they are small, no form is far from another.
            weight.assign(rng.normal(size=weight.shape) * 1.5 * width**-0.5)
        values = {name: tf.constant(one) for name, one in inputs.items()}

    @tf.function(jit_compile=not device.startswith("CPU"), autograph=False)
    def step():
        variables = [weight.value for weight in layer.trainable_weights]
        watched = [values["query"], values["relative_embeddings"]]
        with tf.GradientTape() as tape:
            tape.watch(watched)
            output = tf.cast(layer(**values), "float32")
            loss = tf.reduce_sum(output * tf.sin(output))
        return [output, *tape.gradient(loss, [*variables, *watched])]

    def call():
        with tf.device(device):
            return [np.asarray(tf.cast(one, "float32")) for one in step()]

    return call


def largest_error(found, expected):
    """The largest difference of a tensor, by its norm or a hundredth of the largest."""
    norms = [np.linalg.norm(one) for one in expected]
    errors = [
        np.linalg.norm(one - two) / max(norm, 1e-2 * max(norms))
        for one, two, norm in zip(found, expected, norms, strict=True)
    ]
    # Not Python's, which may pass over a NaN.
    return float(np.max(errors))


if __name__ == "__main__":
    files.run_command(main)
