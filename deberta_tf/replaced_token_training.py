"""How replaced-token detection trains: sampling, both losses, one update or two."""

import keras
import tensorflow as tf

from deberta_tf import updates
from deberta_tf.distribution import StrategyFit
from deberta_tf.embeddings import token_mask
from deberta_tf.token_prediction import TokenAccuracy

# Evaluations draw the same tokens each time.
EVALUATION_SEED = (0, 0)


class ReplacedTokenTraining(StrategyFit):
    """Mixin of `DebertaReplacedTokenDetection`: `compile`, `fit` and `evaluate`.

    They take what `DebertaMaskedLM` takes: rows with [MASK] in them and
    `mask_positions`, labels (b, p), weights (b, p). The generator's loss is the mean
    cross-entropy of the masked tokens; the discriminator's, the mean binary
    cross-entropy of all tokens but padding, where a token is a replaced one if it was
    masked and the generator drew another. No gradient passes through the draw.

    Source: SPEC 4.2, 4.3.
    """

    discriminator_optimizer = None
    _measures = None

    def compile(
        self,
        optimizer="auto",
        discriminator_optimizer="auto",
        *,
        discriminator_weight=50.0,
        decoupled=None,
        **kwargs,
    ):
        """How both networks are trained.

        Args:
            optimizer: Keras optimizer of the generator; of both, unless `decoupled`.
                "auto": Adam with rate 5e-5.
            discriminator_optimizer: Keras optimizer of the discriminator, another than
                the generator's. "auto": as `optimizer`, where that is a name or "auto".
            discriminator_weight: float. What the discriminator's loss counts beside the
                generator's, lambda in the paper.
            decoupled: bool. First the generator is updated, by its loss alone, then the
                discriminator by its own. False: one update by the sum. None: True but
                for embedding_sharing="es", whose table learns from both.
            kwargs: as `StrategyFit.compile` takes them; neither losses nor metrics.

        Raises:
            ValueError: if the optimizers are not as said, or a table that both losses
                train should be trained decoupled.
        """
        shared = self.embedding_sharing == "es"
        if decoupled is None:
            decoupled = not shared
        if decoupled and shared:
            raise ValueError(
                "embedding_sharing='es' needs decoupled=False: both losses train the "
                "table. Received: decoupled=True"
            )
        for name in ("loss", "metrics", "weighted_metrics"):
            if kwargs.pop(name, None) not in (None, "auto"):
                raise ValueError(f"Losses and metrics are fixed. Received: {name}")
        with self._scope():
            if not decoupled:
                discriminator_optimizer = None
            elif discriminator_optimizer == "auto":
                discriminator_optimizer = _another(optimizer)
            self.discriminator_optimizer = _made(discriminator_optimizer)
            optimizer = _made(optimizer)
            if optimizer is not None and optimizer is self.discriminator_optimizer:
                raise ValueError(
                    "The networks need an optimizer each. Received: the same one twice"
                )
            half = self.dtype_policy.name == "mixed_float16"
            if decoupled and half and kwargs.get("auto_scale_loss", True):
                # Keras does so with the first one alone.
                self.discriminator_optimizer = _scaling(self.discriminator_optimizer)
            self._measures = Measures()
            self.decoupled = decoupled
            self.discriminator_weight = float(discriminator_weight)
            super().compile(
                optimizer, None, metrics=None, weighted_metrics=None, **kwargs
            )

    @property
    def optimizers(self):
        return [self.optimizer, self.discriminator_optimizer][: 1 + self.decoupled]

    def build_optimizers(self):
        with self._scope():
            if not self.decoupled:
                updates.build(self.optimizer, self.trainable_variables)
                return
            updates.build(self.optimizer, self.generator.trainable_variables)
            updates.build(self.discriminator_optimizer, self.discriminator_variables)

    @property
    def discriminator_variables(self):
        """What trains and is not the generator's."""
        own = {id(variable) for variable in self.generator.trainable_variables}
        return [v for v in self.trainable_variables if id(v) not in own]

    def get_compile_config(self):
        config = super().get_compile_config()
        if not config:
            return config
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            config.pop(name)
        return {
            **config,
            "discriminator_optimizer": keras.saving.serialize_keras_object(
                self.discriminator_optimizer
            ),
            "discriminator_weight": self.discriminator_weight,
            "decoupled": self.decoupled,
        }

    @property
    def metrics(self):
        return [] if self._measures is None else self._measures.metrics

    def get_metrics_result(self):
        results = super().get_metrics_result()
        loss = results["discriminator_loss"] * self.discriminator_weight
        return {"loss": results["generator_loss"] + loss, **results}

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # All but the optimizers is built; a call of the model needs what is drawn.
        if self._distribute_strategy is not None:
            self.build_optimizers()

    def train_step(self, data):
        if self.decoupled:
            self._two_updates(data)
        else:
            self._one_update(data)
        return self.logs()

    def test_step(self, data):
        found = self.generate(data, EVALUATION_SEED, training=False)
        self._measures.see_generator(data, found)
        self._measures.see_discriminator(
            *self.detect(data, found.drawn, training=False)
        )
        return self.get_metrics_result()

    def generate(self, data, seed, training):
        """`Predictions` of the generator at masked places, (b, p), with draws."""
        inputs, mask_ids, mask_weights = data
        masked = {name: inputs[name] for name in self.generator.input}
        return self.generator.predict_tokens(
            masked, mask_ids, mask_weights, training, self.sample, seed
        )

    def sample(self, logits, seed):
        """One token for each place, drawn from the softmax.

        Rows of the table from `num_tokens` on, which no token has, are never drawn.

        Args:
            logits: float32 (…, vocabulary).
            seed: int32 (2,).

        Returns:
            int32 (…).
        """
        logits = logits[..., : self.num_tokens]
        # The largest logit plus Gumbel noise is a draw from the softmax. The least
        # uniform draw is above 0, so that the noise is finite.
        noise = tf.random.stateless_uniform(tf.shape(logits), seed, 1e-30, 1.0)
        noise = -tf.math.log(-tf.math.log(noise))
        return tf.argmax(logits + noise, axis=-1, output_type=tf.int32)

    def detect(self, data, ids, training):
        """(logits, labels, weights) of each token being replaced, float32 (b, l)."""
        inputs, mask_ids, mask_weights = data
        positions = inputs["mask_positions"]
        positions = tf.where(mask_weights > 0, positions, tf.zeros_like(positions))
        row = replace_tokens(inputs["token_ids"], positions, ids)
        original = replace_tokens(inputs["token_ids"], positions, mask_ids)
        corrupted = {**inputs, "token_ids": row}
        logits = self.discriminate(corrupted, training=training)
        real = token_mask(inputs["padding_mask"])
        labels = tf.cast(row != original, tf.float32)
        return logits, labels, tf.cast(real, tf.float32)

    def _two_updates(self, data):
        totals = _totals(data)

        def generator_forward(part):
            found = self.generate(part, self.sampling_seed.next(), training=True)
            return tf.math.divide_no_nan(found.loss, totals[0]), found

        def observe_generator(part, found):
            self._measures.see_generator(part, found)
            return found.drawn

        def discriminator_forward(part):
            data, ids = part
            outputs = self.detect(data, ids, training=True)
            loss, _ = discriminator_loss(*outputs)
            loss = tf.math.divide_no_nan(loss, totals[1])
            return self.discriminator_weight * loss, outputs

        def observe_discriminator(_, outputs):
            self._measures.see_discriminator(*outputs)

        ids = self.descend(
            data,
            generator_forward,
            observe_generator,
            self.optimizer,
            lambda: self.generator.trainable_variables,
            "generator_gradient_norm",
            keep=tf.cast(data[1], tf.int32),
        )
        self.descend(
            (data, ids),
            discriminator_forward,
            observe_discriminator,
            self.discriminator_optimizer,
            lambda: self.discriminator_variables,
            "discriminator_gradient_norm",
        )

    def _one_update(self, data):
        totals = _totals(data)

        def forward(part):
            found = self.generate(part, self.sampling_seed.next(), training=True)
            outputs = self.detect(part, found.drawn, training=True)
            losses = found.loss, discriminator_loss(*outputs)[0]
            one, other = map(tf.math.divide_no_nan, losses, totals)
            return one + self.discriminator_weight * other, (found, outputs)

        def observe(part, outputs):
            self._measures.see_generator(part, outputs[0])
            self._measures.see_discriminator(*outputs[1])

        self.descend(
            data, forward, observe, self.optimizer, lambda: self.trainable_variables
        )


class Measures:
    """The metrics of both networks: means over masked tokens, and over all tokens.

    `replaced_rate` is the share of all tokens that another one stands for.
    """

    def __init__(self):
        mean, accuracy = keras.metrics.Mean, keras.metrics.BinaryAccuracy
        self.generator_loss = mean(name="generator_loss")
        self.generator_accuracy = TokenAccuracy(name="generator_accuracy")
        self.discriminator_loss = mean(name="discriminator_loss")
        # Of logits: one half is at 0.
        self.discriminator_accuracy = accuracy(
            name="discriminator_accuracy", threshold=0.0
        )
        self.discriminator_auc = keras.metrics.AUC(
            name="discriminator_auc", from_logits=True
        )
        self.replaced_rate = mean(name="replaced_rate")

    @property
    def metrics(self):
        return list(vars(self).values())

    def see_generator(self, data, found):
        """Takes in a batch and the generator's `Predictions`."""
        _, mask_ids, mask_weights = data
        weight = tf.reduce_sum(tf.cast(mask_weights, tf.float32))
        self._mean(self.generator_loss, found.loss, weight)
        self.generator_accuracy.update_state(mask_ids, found.ids, mask_weights)

    def see_discriminator(self, logits, labels, weights):
        """Takes in what `ReplacedTokenTraining.detect` returns."""
        loss, weight = discriminator_loss(logits, labels, weights)
        self._mean(self.discriminator_loss, loss, weight)
        # Metrics take columns for features: each token is an example.
        logits, labels, weights = (
            tf.reshape(value, [-1, 1]) for value in (logits, labels, weights)
        )
        self.discriminator_accuracy.update_state(labels, logits, weights)
        self.discriminator_auc.update_state(labels, logits, weights)
        self.replaced_rate.update_state(labels, weights)

    @staticmethod
    def _mean(metric, total, weight):
        metric.update_state(tf.math.divide_no_nan(total, weight), weight)


def discriminator_loss(logits, labels, weights):
    """(sum of the binary cross-entropies of tokens, their number)."""
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
    return tf.reduce_sum(losses * weights), tf.reduce_sum(weights)


def replace_tokens(token_ids, positions, replaced_ids):
    """Puts tokens at some positions of each row.

    Args:
        token_ids: int (b, l).
        positions: int (b, p); 0, where [CLS] stands, is an unused entry.
        replaced_ids: int (b, p), the tokens to put there.

    Returns:
        int32 (b, l).
    """
    ops = keras.ops
    token_ids, positions, replaced_ids = (
        ops.cast(ids, "int32") for ids in (token_ids, positions, replaced_ids)
    )
    # A comparison, not a scatter: TPU scatters row by row. The running sum counts
    # columns where their number is not known yet.
    columns = ops.cumsum(ops.ones_like(token_ids), axis=1) - 1
    hits = ops.equal(ops.expand_dims(positions, 2), ops.expand_dims(columns, 1))
    hits = ops.logical_and(hits, ops.expand_dims(positions > 0, 2))  # (b, p, l)
    placed = ops.max(ops.where(hits, ops.expand_dims(replaced_ids, 2), -1), axis=1)
    return ops.where(placed < 0, token_ids, placed)


def _totals(data):
    """Masked tokens and all tokens of the global batch, two float32 scalars."""
    inputs, _, mask_weights = data
    real = tf.cast(token_mask(inputs["padding_mask"]), tf.float32)
    masked = tf.cast(mask_weights, tf.float32)
    totals = [tf.reduce_sum(masked), tf.reduce_sum(real)]
    return updates.sum_over_replicas(totals)


def _made(optimizer):
    return (
        keras.optimizers.Adam(5e-5)
        if optimizer == "auto"
        else (keras.optimizers.get(optimizer))
    )


def _another(optimizer):
    """An optimizer like one that is named.

    Raises:
        ValueError: if it is an object: what it decays is not told by its config.
    """
    if isinstance(optimizer, str):
        return optimizer
    raise ValueError(
        "Decoupled training needs an optimizer for each network: pass "
        f"discriminator_optimizer too. Received: optimizer={optimizer!r} alone"
    )


def _scaling(optimizer):
    """An optimizer that scales losses up, as float16 needs it."""
    scaling = keras.optimizers.LossScaleOptimizer
    if optimizer is None or isinstance(optimizer, scaling):
        return optimizer
    return scaling(optimizer, name="discriminator_loss_scale_optimizer")
