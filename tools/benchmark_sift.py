"""What scale-invariant fine-tuning costs beside a plain step: time and memory."""

import numpy as np
import tensorflow as tf

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.optimization import WarmupLinear, adamw
from deberta_tf.sift import ScaleInvariantFineTuning
from deberta_tf.tasks import DebertaTextClassifier
from tools import timing

VOCABULARY = 8_000
# Geometry of every contender.
LAYERS, HEADS, WIDTH = 6, 4, 256
CONTENDERS = {
    "plain": lambda task: task,
    "SiFT": ScaleInvariantFineTuning,
    "SiFT, clean pass run again": lambda task: ScaleInvariantFineTuning(
        task, recompute=True
    ),
}


def steps(arguments):
    """{name: callable that takes one training step}."""
    return {name: step_of(name, arguments) for name in CONTENDERS}


def step_of(name, arguments):
    """A callable that takes one training step of a contender on the same batch."""
    backbone = DebertaBackbone(
        VOCABULARY, LAYERS, HEADS, WIDTH, 4 * WIDTH, dtype=arguments.precision
    )
    task = DebertaTextClassifier(backbone, num_classes=2)
    task.compile(adamw(WarmupLinear(1e-4, 1000, 100)), global_clipnorm=1.0)
    task.build_optimizers()
    model = CONTENDERS[name](task)
    step = tf.function(
        model.train_step, jit_compile=arguments.jit_compile, autograph=False
    )
    batch = make_batch(arguments)
    return lambda: float(step(batch)["loss"])


def make_batch(arguments):
    rng = np.random.default_rng(0)
    shape = (arguments.batch_size, arguments.sequence_length)
    inputs = {
        "token_ids": tf.constant(rng.integers(5, VOCABULARY, shape), tf.int32),
        "padding_mask": tf.ones(shape, tf.int32),
    }
    return inputs, tf.constant(rng.integers(0, 2, shape[:1]), tf.int32)


def memory(arguments):
    """{name: bytes that two steps took at most}, each in a process of its own."""
    return {
        name: timing.in_own_process(peak_of, name, arguments) for name in CONTENDERS
    }


def peak_of(name, arguments):
    """Bytes that this process grew by at most in two steps of a contender."""
    step = step_of(name, arguments)
    return timing.growth(lambda: [step(), step()])
