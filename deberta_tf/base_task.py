"""What all tasks share: raw inputs or ids, foreign folders, export."""

import contextlib
import inspect
import os
import warnings

import keras
import tensorflow as tf

from deberta_tf import files
from deberta_tf.backbone import DebertaBackbone, check_arguments
from deberta_tf.checkpoints import folders, transfer, writer
from deberta_tf.distribution import StrategyFit
from deberta_tf.inference import Inference
from deberta_tf.preprocessing import ARRAYS, as_dataset, as_tensors
from deberta_tf.relative_position import dimensions
from deberta_tf.serving import ServingExport
from deberta_tf.tokenizer_folders import has_tokenizer, warn_of_unread_tokenizer
from deberta_tf.tokenizers import DebertaTokenizer


class DebertaTask(StrategyFit, Inference, ServingExport, writer.HuggingFaceSaving):
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
        extra_inputs: dict of int inputs besides the backbone's: name to shape, without
            the axis b.
        input_shape: shape of each of the backbone's inputs, without the axis b.
        skip_last_block: bool. Whether the head does without the last hidden state.

    Attributes:
        foreign_class: str, how the name of Hugging Face's class of the task ends; None:
            it has none.
    """

    backbone_cls = DebertaBackbone
    foreign_class = None

    def __init__(
        self,
        backbone,
        head,
        preprocessor=None,
        extra_inputs=None,
        input_shape=(None,),
        skip_last_block=False,
        **kwargs,
    ):
        check_arguments(type(self), kwargs, known=("compile", "dtype"))
        self.backbone = backbone
        self.head = head
        self.preprocessor = preprocessor
        self.skip_last_block = skip_last_block
        check_vocabulary(backbone, preprocessor)
        shapes = {**dict.fromkeys(backbone.input, input_shape), **(extra_inputs or {})}
        inputs = {
            name: keras.Input(shape, dtype="int32", name=name)
            for name, shape in shapes.items()
        }
        super().__init__(inputs=inputs, outputs=self.call(inputs), **kwargs)
        # Keras would hold a padding mask to the rank of its symbolic input, and
        # refuse a call without the optional inputs.
        self.input_spec = None

    def call(self, inputs, training=None, mask=None, perturb=None, **head_options):
        """The outputs.

        Args:
            inputs: dict.
            training: bool.
            mask: of Keras; unused.
            perturb: as `DebertaEmbeddings` takes it.
            head_options: what the task's head takes besides.
        """
        states = self.backbone.embeddings(inputs, perturb=perturb, training=training)
        states = self.backbone.encoder(
            states,
            inputs["padding_mask"],
            states=True,
            skip_last_block=self.skip_last_block,
            training=training,
        )
        return self.head(states, inputs, training=training, **head_options)

    def output_classes(self, logits, inputs):
        """The outputs as logits of distributions, float32 (…, classes).

        Where there is one class alone, a distribution is a number.
        """
        return logits

    def output_weights(self, inputs):
        """What each distribution of `output_classes` counts, float32 (…)."""
        return tf.ones(dimensions(inputs["token_ids"])[:1])

    def default_loss(self):
        """The loss of `compile(loss="auto")`, of the outputs as logits."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def default_metrics(self):
        """Those of `compile`: {"metrics" or "weighted_metrics": list}."""
        return {"metrics": [keras.metrics.SparseCategoricalAccuracy("accuracy")]}

    def compile(
        self,
        optimizer="auto",
        loss="auto",
        *,
        metrics="auto",
        weighted_metrics="auto",
        **kwargs,
    ):
        """Defaults: Adam 5e-5, and the loss and metrics of the task."""
        if optimizer == "auto":
            optimizer = keras.optimizers.Adam(5e-5)
        if loss == "auto":
            loss = self.default_loss()
        given = {"metrics": metrics, "weighted_metrics": weighted_metrics}
        default = self.default_metrics()
        for name, value in given.items():
            # Keras takes None for what was compiled before.
            kwargs[name] = (default.get(name) if value == "auto" else value) or []
        super().compile(optimizer, loss, **kwargs)

    def require_preprocessor(self, what):
        """Raises ValueError, with what it is wanted for, where there is none."""
        if self.preprocessor is None:
            raise ValueError(
                f"{type(self).__name__} has no preprocessor, so it can't {what}"
            )

    def inputs_in(self, packed):
        """Of a packed row what the model takes."""
        return {name: packed[name] for name in self.input}

    def fit(self, x=None, y=None, batch_size=None, *, shuffle=True, **kwargs):
        """`keras.Model.fit` on raw inputs or ids; arrays and lists are shuffled.

        On several replicas, or with accumulation, their last batch is left out where it
        is not full; what is in it differs from epoch to epoch.
        """
        x, y = as_tensors(x), as_tensors(y)
        weights = kwargs.pop("sample_weight", None)
        held_out = kwargs.pop("validation_data", None)
        if isinstance(held_out, (list, tuple)):
            held_out = as_dataset(*as_tensors(tuple(held_out))).batch(batch_size or 32)
        if isinstance(x, ARRAYS):
            # KerasHub would hand arrays on in their order.
            x = as_dataset(x, y, weights)
            if split := kwargs.pop("validation_split", None):
                num_training = int(len(x) * (1 - split))
                held_out = x.skip(num_training).batch(batch_size or 32)
                x = x.take(num_training)
            if shuffle:
                x = x.shuffle(x.cardinality())
            x = x.batch(batch_size or 32, drop_remainder=self.num_parts > 1)
            y = weights = batch_size = None
        kwargs |= {"sample_weight": weights, "validation_data": held_out}
        # Keras warns that it does not shuffle a dataset.
        return super().fit(x, y, batch_size, shuffle=False, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """`keras.Model.evaluate` on raw inputs or ids."""
        return super().evaluate(as_tensors(x), as_tensors(y), *args, **kwargs)

    # Nothing in it is for AutoGraph, which takes seconds to read it all.
    @tf.autograph.experimental.do_not_convert
    def preprocess_samples(self, x, y=None, sample_weight=None):
        if isinstance(x, dict) and "token_ids" in x:
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        if self.preprocessor is None:
            raise ValueError(
                f"{type(self).__name__} has no preprocessor: it takes a dict of ids, "
                f"token_ids among them. Received: {type(x).__name__}"
            )
        return super().preprocess_samples(x, y, sample_weight)

    def save_to_preset(self, preset_dir, max_shard_size=10):
        """Saves config, weights and tokenizer to a folder, whole or not at all.

        Raises:
            ValueError: if the folder holds what is no part of a preset: it would
                be lost, since the folder is replaced.
        """
        files.check_replaceable(preset_dir, files.PRESET_FILES.fullmatch)
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
        """Loads a task from a folder or handle, or builds a published size.

        A Hugging Face / Microsoft folder gives its tokenizer too, where it has one.
        Parts of the head that it does not have are fresh, with a warning that names
        them.

        Args:
            preset: str, as `DebertaBackbone.from_preset` takes it. A preset of
                another task, or of a backbone alone, gets a fresh head.
            load_weights: bool. False: fresh weights.
            kwargs: constructor arguments of the task; `dtype` and what the task has not
                itself, such as `attention_form`, go to the backbone.

        Raises:
            ValueError: if the preset is unknown, or its tensors do not fit.
        """
        preset = os.fspath(preset)
        checkpoint = folders.open_checkpoint(preset, load_weights)
        if checkpoint is not None:
            return cls.from_checkpoint(checkpoint, load_weights, **kwargs)
        if not has_tokenizer(preset):
            kwargs.setdefault("preprocessor", None)
        options = cls._take_backbone_options(kwargs)
        if options:
            kwargs["backbone"] = DebertaBackbone.from_preset(
                preset, load_weights, dtype=kwargs.pop("dtype", None), **options
            )
        task = super().from_preset(preset, load_weights=load_weights, **kwargs)
        check_vocabulary(task.backbone, task.preprocessor)
        if load_weights and not cls.is_held_by(preset):
            warn_of_fresh(task, ["all"])
        return task

    @classmethod
    def is_held_by(cls, preset):
        """Whether a preset of ours is one of this task."""
        path = folders.find_file(preset, "task.json")
        name = path and files.read_json(path).get("registered_name")
        return name == keras.saving.get_registered_name(cls)

    @classmethod
    def from_checkpoint(cls, checkpoint, load_weights=True, dtype=None, **kwargs):
        """Builds the task that an opened `Checkpoint` holds, see `from_preset`."""
        options = cls._take_backbone_options(kwargs)
        backbone = DebertaBackbone(**{**checkpoint.arguments, **options}, dtype=dtype)
        if "preprocessor" not in kwargs:
            kwargs["preprocessor"] = cls.foreign_preprocessor(checkpoint, backbone)
        arguments = cls.foreign_arguments(checkpoint, dtype=dtype, **kwargs)
        task = cls(backbone, **{**arguments, **kwargs})
        if load_weights:
            task.load_checkpoint(checkpoint)
        return task

    @classmethod
    def _take_backbone_options(cls, kwargs):
        """Takes the arguments out that are the backbone's alone."""
        own = inspect.signature(cls.__init__).parameters
        names = set(DebertaBackbone.config_names()) & kwargs.keys() - own.keys()
        return {name: kwargs.pop(name) for name in names}

    @classmethod
    def foreign_arguments(cls, checkpoint, **given):
        """Constructor arguments that a Hugging Face / Microsoft folder tells."""
        return {}

    @classmethod
    def foreign_preprocessor(cls, checkpoint, backbone):
        """The preprocessor for the folder's tokenizer; None where it has none."""
        preset = checkpoint.preset
        if cls.preprocessor_cls is None or preset is None:
            return None
        if not has_tokenizer(preset):
            warn_of_unread_tokenizer(preset)
            return None
        tokenizer = DebertaTokenizer.from_preset(preset)
        return cls.preprocessor_cls(
            tokenizer, sequence_length=min(512, backbone.max_sequence_length)
        )

    def load_checkpoint(self, checkpoint):
        """Sets the weights, and warns of parts of the head that are fresh."""
        tensors = transfer.fitting_head(self.own_weights, checkpoint.tensors)
        fresh = transfer.assign(self.own_weights, tensors)
        if fresh:
            warn_of_fresh(self, fresh)

    def foreign_entries(self):
        """What the config of a Hugging Face folder tells of the head."""
        return {}

    def foreign_models(self, dtype):
        """What a Hugging Face folder of it holds, see `writer.write_folder`."""
        tensors = transfer.stored_tensors(self, self.own_weights, dtype)
        arguments = self.backbone.get_config()
        entries, ending = self.foreign_entries(), self.foreign_class
        return {"": writer.Model(arguments, tensors, entries, ending)}

    @property
    def own_weights(self):
        """Variables of backbone and head."""
        return self.weights


def warn_of_fresh(task, parts):
    """Warns that parts of a task's head are not those of its preset."""
    warnings.warn(
        f"The preset has no head for {type(task).__name__}, or not all of it: "
        f"{', '.join(parts)} are fresh",
        stacklevel=4,
    )


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
