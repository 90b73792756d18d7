"""What all tasks share: raw inputs or ids, foreign folders, export."""

import contextlib
import os
import re
import warnings

import keras
import numpy as np
import tensorflow as tf

from deberta_tf import checkpoints, files
from deberta_tf.backbone import DebertaBackbone
from deberta_tf.distribution import StrategyFit

# scores.json is the trainers' own.
PRESET_FILES = re.compile(
    r"assets|model(_\d+)?\.weights\.(h5|json)|task\.weights\.h5"
    r"|(config|metadata|preprocessor|scores|task|tokenizer)\.json"
)


class DebertaTask(StrategyFit):
    """Base of the tasks: backbone, then `head(states, inputs)`.

    It stands before KerasHub's own class of the task, as in `class
    DebertaMaskedLM(DebertaTask, keras_hub.models.MaskedLM)`, so that
    `keras_hub.models.MaskedLM.from_preset` finds ours. It can't derive from
    `keras_hub.models.Task` itself: Keras rewrites the bases of functional models, and
    fails on a class that comes to `keras.Model` by two ways.

    `fit`, `evaluate` and `predict` take raw strings, which the preprocessor turns
    to ids, or a dict of ids, which passes as it is.

    Args:
        backbone: `DebertaBackbone`.
        head: layer, called with the hidden states (embeddings first) and the inputs.
        preprocessor: KerasHub preprocessor, or None for ids only.
        extra_inputs: tuple of str. Names of int (b, p) inputs besides the backbone's.
        skip_last_block: bool. Whether the head does without the last hidden state.
    """

    backbone_cls = DebertaBackbone

    def __init__(
        self,
        backbone,
        head,
        preprocessor=None,
        extra_inputs=(),
        skip_last_block=False,
        **kwargs,
    ):
        self.backbone = backbone
        self.head = head
        self.preprocessor = preprocessor
        self.skip_last_block = skip_last_block
        check_vocabulary(backbone, preprocessor)
        inputs = dict(backbone.input)
        for name in extra_inputs:
            inputs[name] = keras.Input((None,), dtype="int32", name=name)
        super().__init__(inputs=inputs, outputs=self.call(inputs), **kwargs)
        # Keras would hold a padding mask to the rank of its symbolic input, and
        # refuse a call without the optional inputs.
        self.input_spec = None

    def call(self, inputs, training=None, mask=None):
        states = self.backbone.embeddings(inputs, training=training)
        states = self.backbone.encoder(
            states,
            inputs["padding_mask"],
            states=True,
            skip_last_block=self.skip_last_block,
            training=training,
        )
        return self.head(states, inputs, training=training)

    def fit(self, x=None, y=None, batch_size=None, shuffle=True, **kwargs):
        """`keras.Model.fit` on raw inputs or ids; arrays and lists are shuffled."""
        split = kwargs.get("validation_split")
        arrays = (list, tuple, dict, np.ndarray, tf.Tensor)
        if shuffle and not split and isinstance(x, arrays):
            # KerasHub would hand arrays on in their order.
            weights = kwargs.pop("sample_weight", None)
            samples = keras.utils.pack_x_y_sample_weight(x, y, weights)
            x = tf.data.Dataset.from_tensor_slices(samples)
            x = x.shuffle(x.cardinality()).batch(batch_size or 32)
            y = batch_size = None
        # Keras warns that it does not shuffle a dataset.
        return super().fit(x, y, batch_size, shuffle=False, **kwargs)

    def preprocess_samples(self, x, y=None, sample_weight=None):
        if isinstance(x, dict) and "token_ids" in x:
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        return super().preprocess_samples(x, y, sample_weight)

    def save_to_preset(self, preset_dir, max_shard_size=10):
        """Saves config, weights and tokenizer to a folder, whole or not at all.

        Raises:
            ValueError: if the folder holds what is no part of a preset: it would
                be lost, since the folder is replaced.
        """
        files.check_replaceable(preset_dir, PRESET_FILES.fullmatch)
        with files.atomic_directory(preset_dir) as temporary:
            super().save_to_preset(temporary, max_shard_size=max_shard_size)

    def save_task_weights(self, filepath):
        with self._no_optimizer():
            super().save_task_weights(filepath)

    def load_task_weights(self, filepath):
        with self._no_optimizer():
            super().load_task_weights(filepath)

    @contextlib.contextmanager
    def _no_optimizer(self):
        # KerasHub would put its moments, twice the weights, beside the head, and
        # could not load them again.
        optimizer, self.optimizer = getattr(self, "optimizer", None), None
        try:
            yield
        finally:
            self.optimizer = optimizer

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """Loads a task from a folder, or builds a published size.

        Args:
            preset: str, as `DebertaBackbone.from_preset` takes it. A preset of
                another task, or of a backbone alone, gets a fresh head.
            load_weights: bool. False: fresh weights.
            kwargs: constructor arguments of the task; `dtype` goes to the backbone.
        """
        preset = os.fspath(preset)
        if checkpoints.foreign_config(preset, load_weights) is None:
            task = super().from_preset(preset, load_weights=load_weights, **kwargs)
            check_vocabulary(task.backbone, task.preprocessor)
            return task
        dtype = kwargs.pop("dtype", None)
        backbone = DebertaBackbone.from_preset(
            preset, load_weights=load_weights, dtype=dtype
        )
        if load_weights:
            kwargs = {**cls.foreign_arguments(preset, **kwargs), **kwargs}
        task = cls(backbone, **kwargs)
        if load_weights:
            task.load_foreign_head(checkpoints.read_tensors(preset))
        return task

    def load_foreign_head(self, tensors):
        """Sets the head's weights, or warns that the checkpoint has no such head."""
        head = [weight for weight in self.weights if weight.path.startswith("head/")]
        if any(checkpoints.their_name(weight.path) in tensors for weight in head):
            checkpoints.assign(self.weights, tensors)
        else:
            warnings.warn(
                f"The checkpoint has no head for {type(self).__name__}: it is fresh",
                stacklevel=3,
            )

    @classmethod
    def foreign_arguments(cls, preset, **given):
        """Constructor arguments that a Hugging Face / Microsoft folder tells."""
        return {}


def check_vocabulary(backbone, preprocessor):
    """Refuses a tokenizer whose ids the token table does not have."""
    tokenizer = preprocessor and preprocessor.tokenizer
    if tokenizer is None or not tokenizer.has_vocabulary:
        return  # A preset loads the vocabulary after it has built the task.
    size = tokenizer.vocabulary_size()
    if size > backbone.vocabulary_size:
        raise ValueError(
            "The tokenizer has more tokens than the model has rows. Received: "
            f"a tokenizer of {size}, vocabulary_size={backbone.vocabulary_size}"
        )
