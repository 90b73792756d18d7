"""The training step that all tasks share, right on any number of devices."""

import contextlib

import keras
import tensorflow as tf

from deberta_tf import updates


class StrategyFit:
    """Mixin of `keras.Model`: `fit` and `evaluate` under every tf.distribute strategy.

    A global batch gives the same step on any number of replicas: each replica's loss
    counts by its share of the global batch, gradients are clipped when they are summed,
    a batch may be taken in parts, and an update that is not finite is left out. The
    logs of a training step also have `gradient_norm`, the mean length of the gradients
    before clipping, and `skipped_updates`, since metrics were reset last.

    Model and optimizer are made under `strategy.scope()`. Keras's own `fit` clips each
    replica's gradients before the sum, and fails under
    `MultiWorkerMirroredStrategy`, with `steps_per_execution`, accumulation, moving
    averages and `jit_compile=True` (keras 3.15).
    """

    global_clipnorm = None
    gradient_accumulation_steps = 1
    _loss_reduction = None

    def compile(
        self, *args, global_clipnorm=None, gradient_accumulation_steps=1, **kwargs
    ):
        """`keras.Model.compile`, and how gradients are clipped and accumulated.

        Args:
            global_clipnorm: float. Longest gradient over all parameters together;
                None: no clipping.
            gradient_accumulation_steps: int. Parts, one after the other, that each
                replica's share of a batch is taken in; they divide it.
            jit_compile: as Keras takes it. Under a strategy forward and backward pass
                are compiled, the update is not; under TPUStrategy all is, always.

        Raises:
            ValueError: if the optimizer clips or accumulates by itself, or was not
                made under the strategy of the model.
        """
        if gradient_accumulation_steps < 1:
            raise ValueError(
                "gradient_accumulation_steps must be at least 1. "
                f"Received: {gradient_accumulation_steps}"
            )
        with self._scope():
            super().compile(*args, **kwargs)
            self._statistics = updates.Statistics()
        self.global_clipnorm = global_clipnorm
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self._loss_reduction = _loss_reduction(self.loss)
        for optimizer in self.optimizers:
            updates.adopt(optimizer, self._distribute_strategy)

    @property
    def optimizers(self):
        """The optimizers that `compile` was given."""
        return [self.optimizer]

    def build_optimizers(self):
        """Makes the variables of the optimizers, where that was not done yet."""
        with self._scope():
            updates.build(self.optimizer, self.trainable_variables)

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {
            **config,
            "global_clipnorm": self.global_clipnorm,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "optimizer_built": self.optimizer is not None and self.optimizer.built,
        }

    def compile_from_config(self, config):
        # Keras leaves a model with a compile of its own uncompiled when it loads it.
        config = keras.saving.deserialize_keras_object(config)
        optimizer_built = config.pop("optimizer_built")
        self.compile(**config)
        if optimizer_built:
            self.build_optimizers()

    def fit(self, x=None, *args, **kwargs):
        """`keras.Model.fit`; it takes distributed datasets too.

        Raises:
            ValueError: if the replicas and parts do not divide the global batch, or the
                model was not made under the strategy.
        """
        if self._distribute_strategy is None and tf.distribute.has_strategy():
            raise ValueError(
                "The model was made outside of strategy.scope(): make it inside"
            )
        if isinstance(x, tf.distribute.DistributedDataset):
            # What preprocesses takes datasets of one device alone.
            history = keras.Model.fit(self, x, *args, **kwargs)
        else:
            self._check_batches(x)
            history = super().fit(x, *args, **kwargs)
        # Keras sets weights to their moving averages for the first one.
        for optimizer in self.optimizers[1:]:
            optimizer.finalize_variable_values(None)
        return history

    def _check_batches(self, x):
        if isinstance(x, tf.data.Dataset):
            self.check_batch_size(_batch_size(x))
        elif self.num_parts > 1:
            raise ValueError(
                "Several replicas or parts need a tf.data.Dataset, batched with "
                f"drop_remainder=True. Received: x of type {type(x).__name__}"
            )

    @property
    def num_parts(self):
        """Parts that a global batch is taken in: replicas times accumulation."""
        num_replicas = self.distribute_strategy.num_replicas_in_sync
        return num_replicas * self.gradient_accumulation_steps

    def evaluate(self, x=None, *args, **kwargs):
        """`keras.Model.evaluate`; it takes distributed datasets too."""
        if isinstance(x, tf.distribute.DistributedDataset):
            return keras.Model.evaluate(self, x, *args, **kwargs)
        return super().evaluate(x, *args, **kwargs)

    def check_batch_size(self, batch_size):
        """Refuses a global batch that can't be divided.

        Args:
            batch_size: int, examples a step; None: it is not always the same.

        Raises:
            ValueError: if replicas times parts do not divide it.
        """
        num_replicas = self.distribute_strategy.num_replicas_in_sync
        parts = self.num_parts
        if parts == 1 or (batch_size is not None and batch_size % parts == 0):
            return
        found = "batches that may differ in size: batch with drop_remainder=True"
        if batch_size is not None:
            found = f"a global batch of {batch_size}"
        raise ValueError(
            f"The global batch must be divisible by {parts}: {num_replicas} replicas, "
            f"gradient_accumulation_steps={self.gradient_accumulation_steps}. "
            f"Received: {found}"
        )

    def train_step(self, data):
        """One step: loss, gradients, clipping, update. Returns the logs."""
        total = updates.sum_over_replicas(self.loss_weight(data))

        def forward(part):
            loss, y_pred = self.loss_and_outputs(part, training=True)
            return self.share_of_loss(loss, part, total), (loss, y_pred)

        def observe(part, outputs):
            self.observe(part, *outputs)

        self.descend(
            data, forward, observe, self.optimizer, lambda: self.trainable_variables
        )
        return self.logs()

    def test_step(self, data):
        self.observe(data, *self.loss_and_outputs(data, training=False))
        return self.get_metrics_result()

    def loss_and_outputs(self, data, training):
        """The loss of a part of a batch, scalar, and what metrics take of it."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=training)
        return self.loss_of(x, y, y_pred, sample_weight, training), y_pred

    def descend(
        self,
        data,
        forward,
        observe,
        optimizer,
        get_variables,
        name="gradient_norm",
        keep=None,
    ):
        """One update by one optimizer, of the gradients of the global batch.

        Args:
            data: nest of tensors (b, …), this replica's part of the batch, or None.
            forward: callable from a part of `data` to (scalar, outputs); the scalars
                sum to the global batch's loss over all parts and replicas.
            observe: callable from a part and its outputs; it may update metrics. What
                it returns, in shape and dtype a part of `keep`, is kept.
            optimizer: Keras optimizer.
            get_variables: callable to the `keras.Variable`s that the optimizer moves; a
                model may make them when it is first called.
            name: str, of the gradients' length in the logs.
            keep: tensor (b, …), what `observe` returns looks like; None: nothing.

        Returns:
            What `observe` returned, (b, …), or None.
        """

        def gradients_of(part):
            with tf.GradientTape() as tape:
                scalar, outputs = forward(part)
                scaled = optimizer.scale_loss(scalar)
            # Variables are captured by the tape, not given as arguments.
            values = [variable.value for variable in get_variables()]
            found = tape.gradient(scaled, values)
            # Rows of a table that occur twice are summed: their length is that of the
            # sum.
            return outputs, [g if g is None else tf.convert_to_tensor(g) for g in found]

        if self._compiles_gradients():
            gradients_of = tf.function(gradients_of, jit_compile=True, autograph=False)
        kept, gradients = updates.accumulate(
            gradients_of,
            observe,
            data,
            self.gradient_accumulation_steps,
            get_variables,
            keep,
        )
        updates.build(optimizer, get_variables())
        norm, skipped = updates.apply(
            optimizer, gradients, get_variables(), self.global_clipnorm
        )
        self._statistics.update(name, norm, skipped)
        return kept

    def reset_metrics(self):
        super().reset_metrics()
        self._statistics.reset()

    @property
    def num_metric_resets(self):
        """How often metrics were reset: means in the logs are since the last time."""
        return self._statistics.num_resets

    def make_train_function(self, force=False):
        if self._distribute_strategy is None:
            super().make_train_function(force)
        elif self.train_function is None or force:
            self.train_function = self._distributed(self.train_step, self.logs)

    def make_test_function(self, force=False):
        if self._distribute_strategy is None:
            super().make_test_function(force)
        elif self.test_function is None or force:
            self.test_function = self._distributed(
                self.test_step, self.get_metrics_result
            )

    def _distributed(self, step, get_logs):
        """The function from an iterator to the logs of `steps_per_execution` steps."""

        def run_one(batch):
            self.distribute_strategy.run(step, args=(batch,))

        def run(*batches):
            for batch in batches:
                run_one(batch)
            return get_logs()

        if not self.run_eagerly:
            # The step is traced once, however many of them are run.
            run_one = tf.function(run_one, autograph=False, reduce_retracing=True)
            run = tf.function(run, autograph=False)

        def function(iterator):
            # Fetched before any of them is used: the end of the data must not stop a
            # step midway.
            batches = [
                batch
                for _, batch in zip(
                    range(self.steps_per_execution), iterator, strict=False
                )
            ]
            if not batches:
                raise StopIteration
            return run(*batches)

        return function

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras's own takes the mean of a batch over the replicas, which fails for most
        # batches. Shapes are enough.
        if self._distribute_strategy is None:
            return
        if iterator is not None:
            spec = iterator.data_adapter.get_tf_dataset().element_spec
            data_batch = tf.nest.map_structure(_of_one_replica, spec)
        with self._scope():
            self._symbolic_build(data_batch=data_batch)
            self.build_optimizers()

    def take_mean(self, name, value, weight):
        """Takes a scalar of such a weight into a mean of training, see `mean_of`."""
        self._statistics.take(name, value, weight)

    def mean_of(self, name):
        """What `take_mean` took in since metrics were reset last, scalar."""
        return self._statistics.mean_of(name)

    @property
    def compilation(self):
        """An object that `compile` makes anew."""
        return self._statistics

    def logs(self):
        """{name: scalar}: the metrics, and the means of training, so far."""
        return {**self.get_metrics_result(), **self._statistics.results()}

    def observe(self, part, loss, y_pred):
        """Takes a part, its loss and its outputs into the metrics."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(part)
        weight = self.loss_weight(part)
        # Of a part without examples, which ends an evaluation, the loss is no number.
        loss = tf.where(weight > 0, loss, 0.0)
        self._loss_tracker.update_state(loss, sample_weight=weight)
        self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def loss_of(self, x, y, y_pred, sample_weight, training):
        """The loss of one part, scalar: of that part alone."""
        loss = self._compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
        if self._loss_reduction == "sum":
            return loss
        # Keras divides by the number of replicas.
        return loss * tf.distribute.get_strategy().num_replicas_in_sync

    def share_of_loss(self, loss, part, total):
        """What a part's loss adds to that of the global batch; `total`: its weight."""
        if self._loss_reduction == "sum":
            return loss
        return loss * tf.math.divide_no_nan(self.loss_weight(part), total)

    def loss_weight(self, data):
        """What the loss of a part counts: its sample weights, or its examples."""
        x, _, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if self._loss_reduction == "mean_with_sample_weight":
            if sample_weight is not None:
                return tf.reduce_sum(tf.cast(sample_weight, tf.float32))
        return tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], tf.float32)

    def _compiles_gradients(self):
        # Without a strategy Keras compiles the whole step, and TPUs always do.
        strategy = self._distribute_strategy
        is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
        return bool(self.jit_compile) and strategy is not None and not is_tpu

    def _scope(self):
        if self._distribute_strategy is None:
            return contextlib.nullcontext()
        return self._distribute_strategy.scope()


def _loss_reduction(loss):
    """How a loss, or a nest of them, makes one number of a batch.

    Raises:
        ValueError: if the losses of a nest do so in several ways.
    """
    losses = [one for one in keras.tree.flatten(loss) if one is not None]
    found = {getattr(one, "reduction", "sum_over_batch_size") for one in losses}
    found = {"sum_over_batch_size" if name == "mean" else name for name in found}
    if len(found) > 1 or ("mean_with_sample_weight" in found and len(losses) > 1):
        raise ValueError(
            "Several losses must all be means over the batch, or all sums. "
            f"Received reductions: {', '.join(map(str, found))}"
        )
    return found.pop() if found else "sum_over_batch_size"


def _batch_size(dataset):
    """The static batch size of a dataset, None where it has none."""
    shape = tf.nest.flatten(dataset.element_spec)[0].shape
    return shape[0] if shape.rank else None


def _of_one_replica(spec):
    """A tensor's spec of what one replica gets."""
    return spec if isinstance(spec, tf.TensorSpec) else spec._component_specs[0]
