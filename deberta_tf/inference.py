"""Prediction without the work that padding is."""

import contextlib
import threading

import keras
import tensorflow as tf

from deberta_tf.attention_forms import UNDIVIDED
from deberta_tf.backbone import INPUT_NAMES
from deberta_tf.encoder import DebertaEncoder
from deberta_tf.folded_positions import FoldedPositions
from deberta_tf.preprocessing import ARRAYS, as_dataset, as_tensors
from deberta_tf.relative_position import dimensions

# Rows are computed up to a multiple of it: few lengths, and those that matrix units of
# GPUs like.
LENGTH_STEP = 8


class Inference:
    """Mixin of tasks: `predict` and `predict_on_batch`.

    Rows are computed as far as the longest of their batch goes, and not to the end of
    the padding after it; outputs are as long as the rows all the same. Not where XLA
    compiles (`compile(jit_compile=True)`, TPUs), which wants lengths that are known,
    and not with `clamp_distances=False`.

    The tables of positions are projected once a call, and not by each batch; not
    under a strategy of `tf.distribute`, and not with `scan_layers`.
    """

    def predict(self, x, batch_size=None, **kwargs):
        """`keras.Model.predict` on raw inputs or ids.

        Raw inputs are tokenised in a `tf.data` pipeline, some batches ahead of the one
        that is computed. What callbacks do to the weights is seen by the next call.

        Args:
            x: as the preprocessor takes it, or a dict of ids, (b, …); or a
                `tf.data.Dataset` of batches of either.
            batch_size: int; None: 32. Not for datasets.
            kwargs: as Keras takes them.

        Returns:
            What the task returns, NumPy arrays. Where it has an axis of tokens, what
            stands at padding is of no meaning.

        Raises:
            ValueError: if there are no examples.
        """
        x = as_tensors(x)
        if isinstance(x, ARRAYS):
            # KerasHub would tokenise op by op, in Python's threads, where its users
            # have installed grain.
            x, batch_size = as_dataset(x).batch(batch_size or 32), None
            if not len(x):
                raise ValueError("predict needs an example or more. Received: none")
        self.make_predict_function()
        with self._folded_once():
            return super().predict(x, batch_size, **kwargs)

    def predict_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if not self._may_trim(x):
            return super().predict_step(data)
        longest, length = x["token_ids"].shape[-1], computed_length(x)

        def whole():
            return self(x, training=False)

        def trimmed():
            outputs = self(trimmed_inputs(x, length), training=False)
            size = dimensions(x["token_ids"])[-1]
            return self.map_token_outputs(lambda one: filled(one, size), outputs, x)

        if longest is None or longest <= UNDIVIDED:
            return trimmed()
        # What is longer than that is taken in blocks of queries where its length is
        # known, and else all at once, in much more memory.
        return tf.cond(length > UNDIVIDED, whole, trimmed)

    def map_token_outputs(self, function, outputs, inputs):
        """Outputs with a function applied to those that have an axis of tokens.

        A task with any such says which they are. That axis is the second.

        Args:
            function: callable from (b, n, …) to (b, l, …).
            outputs: what the task returned.
            inputs: dict of what it was called with.
        """
        return outputs

    def make_predict_function(self, force=False):
        before = self.predict_function
        super().make_predict_function(force)
        if self.predict_function is not before and self._may_fold():
            self.predict_function = FoldedFunction(
                self.predict_function, self.backbone.encoder
            )

    def _may_trim(self, x):
        if not isinstance(x, dict) or "padding_mask" not in x or self.jit_compile:
            return False
        if isinstance(self.distribute_strategy, tf.distribute.TPUStrategy):
            return False
        layers = self._flatten_layers(include_self=False)
        encoders = [one for one in layers if isinstance(one, DebertaEncoder)]
        return all(one.relative_positions.takes_any_length for one in encoders)

    def _may_fold(self):
        encoder = self.backbone.encoder
        is_alone = (
            self._distribute_strategy is None and not tf.distribute.has_strategy()
        )
        return is_alone and encoder.has_relative_table and not encoder.scan_layers

    def _folded_once(self):
        function = self.predict_function
        is_folded = isinstance(function, FoldedFunction)
        return function.once() if is_folded else contextlib.nullcontext()


class FoldedFunction:
    """A function of batches, as Keras makes it, that takes projected positions.

    They are projected at each call, of the weights that there are then; within `once`
    by the first one, and again where a row is longer than all before.

    Args:
        function: callable from a list of batches, to be traced here first.
        encoder: `DebertaEncoder`, whose tables of positions it takes.
    """

    def __init__(self, function, encoder):
        self.function = function
        self._positions = FoldedPositions(encoder)
        self._thread = threading.local()

    def __call__(self, batches):
        self._project(max(_width(batch) for batch in batches))
        with self._positions.in_use():
            return self.function(batches)

    @contextlib.contextmanager
    def once(self):
        before, self._thread.reach = self._reach, 0
        try:
            yield
        finally:
            self._thread.reach = before

    @property
    def _reach(self):
        """Tokens of the longest row that they are projected for; None: not for any."""
        return getattr(self._thread, "reach", None)

    def _project(self, length):
        if self._reach is None:
            self._positions.project(length)
        elif self._reach < length:
            self._positions.project(length)
            self._thread.reach = length


def _width(batch):
    """Tokens of a batch's rows, 1 at least."""
    x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
    is_dict = isinstance(x, dict) and "token_ids" in x
    # Of other inputs the model says what it wants.
    return (x["token_ids"].shape[-1] or 1) if is_dict else 1


def computed_length(inputs):
    """How far rows must be computed: to the last token of the longest, and beyond it.

    A column of padding is left, if there is one, and the length is a multiple of
    `LENGTH_STEP`, or whole.

    Args:
        inputs: dict of `token_ids` int (…, l) and `padding_mask`, (…, l) or (…, l, l).

    Returns:
        int32 scalar tensor.
    """
    mask = tf.cast(inputs["padding_mask"], tf.bool)
    axes = list(range(mask.shape.rank))
    is_used = tf.reduce_any(mask, axes[:-1])
    if _is_of_pairs(inputs):
        is_used |= tf.reduce_any(mask, axes[:-2] + axes[-1:])
    size = tf.size(is_used)
    used = tf.reduce_max(tf.where(is_used, tf.range(1, size + 1), 0))
    return tf.minimum((used // LENGTH_STEP + 1) * LENGTH_STEP, size)


def trimmed_inputs(inputs, length):
    """Inputs whose rows are cut after so many tokens.

    Args:
        inputs: dict, as a task takes it; what has no axis of tokens stays.
        length: int32 scalar tensor.
    """
    cut = {name: inputs[name][..., :length] for name in INPUT_NAMES if name in inputs}
    if _is_of_pairs(inputs):
        cut["padding_mask"] = cut["padding_mask"][..., :length, :]
    return {**inputs, **cut}


def filled(outputs, length):
    """Outputs (b, n, …) as (b, length, …), the last column again and again.

    That is one of padding, where any was cut off, and padding is alike: no number of
    ours could win a maximum.
    """
    last = tf.shape(outputs)[1] - 1
    return tf.gather(outputs, tf.minimum(tf.range(length), last), axis=1)


def _is_of_pairs(inputs):
    """Whether the mask has an axis of queries beside that of keys."""
    ranks = (len(inputs[name].shape) for name in ("token_ids", "padding_mask"))
    return len(set(ranks)) > 1
