"""The training step that all tasks share."""

import keras
import tensorflow as tf

# What the library uses of others beyond their public interface: module or class to
# names. A test fails by name when a version lacks one.
PRIVATE_HOOKS = {
    "keras.Model": ("_compute_loss",),
    "keras_hub.tokenizers.SentencePieceTokenizer": ("_set_proto_tf",),
    "keras_hub.src.utils.preset_utils": ("check_file_exists", "get_file", "load_json"),
    "tensorflow_text.python.ops.sentencepiece_tokenizer": (
        "_SentencepieceModelResource",
        "gen_sentencepiece_tokenizer",
    ),
}


class StrategyFit:
    """Mixin of `keras.Model`: a training step with clipping after the gradients meet.

    Clipping belongs to `compile`, not to the optimizer: Keras clips each replica's
    gradients before they are summed, which is not the clipped gradient of the batch.
    """

    global_clipnorm = None

    def compile(self, *args, global_clipnorm=None, **kwargs):
        """`keras.Model.compile`, and how gradients are clipped.

        Args:
            global_clipnorm: float. Longest gradient over all parameters together;
                None: no clipping.

        Raises:
            ValueError: if the optimizer clips by itself.
        """
        optimizer = kwargs.get("optimizer", args[0] if args else None)
        # Of a LossScaleOptimizer, the one it wraps.
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        for name in ("clipnorm", "clipvalue", "global_clipnorm"):
            if getattr(optimizer, name, None) is not None:
                raise ValueError(
                    "Gradient clipping is an argument of compile(global_clipnorm=…), "
                    f"not of the optimizer. Received: an optimizer with {name}="
                    f"{getattr(optimizer, name)}"
                )
        if global_clipnorm is not None and getattr(
            optimizer, "gradient_accumulation_steps", None
        ):
            raise ValueError(
                "global_clipnorm would clip each part of an accumulated gradient. "
                "Received: an optimizer with gradient_accumulation_steps="
                f"{optimizer.gradient_accumulation_steps}"
            )
        self.global_clipnorm = global_clipnorm
        super().compile(*args, **kwargs)

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {
            **config,
            "global_clipnorm": self.global_clipnorm,
            "optimizer_built": self.optimizer is not None and self.optimizer.built,
        }

    def compile_from_config(self, config):
        # Keras leaves a model with a compile of its own uncompiled when it loads it.
        config = keras.saving.deserialize_keras_object(config)
        optimizer_built = config.pop("optimizer_built")
        self.compile(**config)
        if optimizer_built:
            self.optimizer.build(self.trainable_variables)

    def train_step(self, data):
        """One step: loss, gradients, clipping, update. Returns the metrics."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            predictions = self(x, training=True)
            loss = self._compute_loss(
                x=x, y=y, y_pred=predictions, sample_weight=sample_weight, training=True
            )
            scaled = self.optimizer.scale_loss(loss)
        # Not before: a model may make its variables when it is first called.
        variables = self.trainable_variables
        gradients = tape.gradient(scaled, [v.value for v in variables])
        # Predictions may be a dict.
        batch_size = tf.shape(keras.tree.flatten(predictions)[0])[0]
        self._loss_tracker.update_state(loss, sample_weight=batch_size)
        if self.global_clipnorm is not None:
            # Under loss scaling (float16) the gradients carry its factor.
            factor = self.optimizer.scale_loss(tf.ones([]))
            gradients, _ = tf.clip_by_global_norm(
                gradients, self.global_clipnorm * factor
            )
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self.compute_metrics(x, y, predictions, sample_weight=sample_weight)
