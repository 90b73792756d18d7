"""The training step that is compiled for a TPU: the trainers' own, without memory."""

from unittest import mock

import tensorflow as tf

from deberta_tf import fused_attention
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.masking import num_mask_positions
from deberta_tf.optimization import WarmupLinear, adafactor, adamw
from deberta_tf.replaced_token import DebertaReplacedTokenDetection, make_generator
from deberta_tf.sift import ScaleInvariantFineTuning
from deberta_tf.tasks import DebertaTextClassifier

OPTIMIZERS = {"adamw": adamw, "adafactor": adafactor}
OBJECTIVES = ("masked_lm", "replaced_token", "classification")
# What makes BERT of a geometry: no position terms and no table of relative positions,
# absolute positions at the input, and so no enhanced mask decoder.
BERT = {"position_terms": (), "absolute_position_input": True}
# Its attention by XLA (of which "product" is nothing else without position terms), or
# by the kernel.
BASELINES = {
    "bert": {**BERT, "attention_form": "product"},
    "fused_bert": {**BERT, "attention_form": "fused"},
}


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


def make_task(options, **overrides):
    """The task of an objective, compiled as the trainers compile it, without memory.

    Args:
        options: as `tools.tpu_compile` parses them.
        overrides: arguments of `DebertaBackbone` in place of the options'.
    """
    with tf.variable_creator_scope(without_memory):
        return _make_task(options, overrides)


def _make_task(options, overrides):
    settings = {
        "dtype": options.precision,
        "attention_form": options.attention_form,
        "gradient_checkpointing": options.gradient_checkpointing,
        "scan_layers": options.scan_layers,
    }
    if options.num_layers is not None:
        settings["num_layers"] = options.num_layers
    if options.dropout is not None:
        settings |= {"dropout": options.dropout, "attention_dropout": options.dropout}
    backbone = DebertaBackbone.from_preset(
        options.preset, load_weights=False, **settings | overrides
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


def serialized_step(task, options):
    """The HLO of one training step, serialized."""
    # The fused kernel, where it is asked for, is traced for a TPU.
    with mock.patch.object(fused_attention, "TARGET", "tpu"):
        return _serialized_step(task, options)


def _serialized_step(task, options):
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
