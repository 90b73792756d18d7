"""Replaced-token detection: a generator fills masks, a discriminator finds them."""

import contextlib
import dataclasses
import warnings

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.base_task import DebertaTask
from deberta_tf.checkpoints import folders
from deberta_tf.dropout import ReplicaSeedGenerator
from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.replaced_token_training import ReplacedTokenTraining, replace_tokens
from deberta_tf.task_heads import ReplacedTokenHead
from deberta_tf.torch_files import StoredTensor

EMBEDDING_SHARINGS = ("gdes", "es", "nes")


class SharedEmbeddings(keras.layers.Layer):
    """The discriminator's embeddings over a token table shared with the generator.

    Args:
        embeddings: `DebertaEmbeddings` of the discriminator.
        generator_embedding: layer of the generator's token table.
        embedding_sharing: str, as `DebertaReplacedTokenDetection` takes it.

    Call arguments:
        inputs: dict, as `DebertaEmbeddings` takes it.

    Returns:
        (b, l, hidden), in the dtype of `embeddings`.

    Source: SPEC 4.3.
    """

    def __init__(self, embeddings, generator_embedding, embedding_sharing, **kwargs):
        # The sum of two tables is rounded once, by the embeddings.
        super().__init__(dtype="float32", **kwargs)
        self.embeddings = embeddings
        self.generator_embedding = generator_embedding
        self.embedding_sharing = embedding_sharing

    def build(self, *_):
        if self.embedding_sharing == "gdes":
            self.embedding_delta = self.add_weight(
                shape=self.generator_embedding.embeddings.shape,
                initializer="zeros",
                name="embedding_delta",
            )
        self.built = True

    def call(self, inputs, training=None):
        return self.embeddings(inputs, table=self.table(), training=training)

    def table(self):
        """What tokens are looked up in, (vocabulary, width); None: the own table."""
        if self.embedding_sharing == "nes":
            return None
        table = tf.convert_to_tensor(self.generator_embedding.embeddings)
        if self.embedding_sharing == "es":
            return table
        return tf.stop_gradient(tf.cast(table, "float32")) + self.embedding_delta

    def compute_output_spec(self, inputs, training=None):
        return self.embeddings.compute_output_spec(inputs)


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaReplacedTokenDetection(
    ReplacedTokenTraining, DebertaTask, keras_hub.models.Task
):
    """Generator and discriminator of replaced tokens, as DeBERTa v3 is pretrained.

    Inputs are those of the backbone, [MASK] tokens among them; `mask_positions` int
    (b, p), where unused entries are 0; and `replaced_ids` int (b, p), the tokens that
    take the places of the masks before the discriminator reads the row.

    Args:
        backbone: `DebertaBackbone`, the discriminator.
        generator: `DebertaMaskedLM` with a backbone of its own, of the same
            vocabulary; in the paper of the same width and half the depth.
        embedding_sharing: str. Token table of the discriminator. "gdes": that of the
            generator, which learns from the generator's loss alone, plus a delta,
            which learns from the discriminator's; "es": that of the generator, which
            learns from both; "nes": its own.
        num_tokens: int. The generator draws ids below it, those that tokens have: a
            published table has more rows than the vocabulary. None: all rows.
        preprocessor: None; ids only. It may give the tokenizer to save.

    Returns:
        dict of `generator_logits`, float32 (b, p, vocabulary_size); `token_ids`, int32
        (b, l), what the discriminator read; `logits`, float32 (b, l), of each token
        being a replaced one.

    With "gdes" and "es", the backbone's own token table is neither read nor trained:
    `materialize` sets it, and so does `save_to_preset`, whose folder gives other tasks
    the discriminator.

    Example:

    >>> generator = DebertaMaskedLM(DebertaBackbone(1000, 1, 4, 64, 256))
    >>> backbone = DebertaBackbone(1000, 2, 4, 64, 256)
    >>> detection = DebertaReplacedTokenDetection(backbone, generator)

    Source: He et al. 2021 (arXiv 2111.09543); SPEC 4.
    """

    def __init__(
        self,
        backbone,
        generator,
        embedding_sharing="gdes",
        num_tokens=None,
        preprocessor=None,
        **kwargs,
    ):
        _check_pair(backbone, generator, embedding_sharing)
        rows = backbone.vocabulary_size
        self.num_tokens = rows if num_tokens is None else num_tokens
        if not 0 < self.num_tokens <= rows:
            raise ValueError(
                f"num_tokens must be in [1, {rows}], the rows of the token table. "
                f"Received: {num_tokens}"
            )
        self.sampling_seed = ReplicaSeedGenerator()
        self.generator = generator
        self.embedding_sharing = embedding_sharing
        self.shared_embeddings = SharedEmbeddings(
            backbone.embeddings,
            generator.backbone.token_embedding,
            embedding_sharing,
            name="shared_embeddings",
        )
        if embedding_sharing != "nes":
            backbone.token_embedding.trainable = False
        head = ReplacedTokenHead(
            backbone.hidden_dim,
            activation=backbone.activation,
            layer_norm_epsilon=backbone.layer_norm_epsilon,
            dtype=backbone.dtype_policy,
            name="replaced_token_head",
        )
        extra_inputs = {"mask_positions": (None,), "replaced_ids": (None,)}
        super().__init__(
            backbone, head, preprocessor, extra_inputs=extra_inputs, **kwargs
        )

    def call(self, inputs, training=None, mask=None):
        masked = {name: inputs[name] for name in self.generator.input}
        token_ids = replace_tokens(
            inputs["token_ids"], inputs["mask_positions"], inputs["replaced_ids"]
        )
        corrupted = {**inputs, "token_ids": token_ids}
        return {
            "generator_logits": self.generator(masked, training=training),
            "token_ids": token_ids,
            "logits": self.discriminate(corrupted, training=training),
        }

    def map_token_outputs(self, function, outputs, inputs):
        by_token = {name: function(outputs[name]) for name in ("token_ids", "logits")}
        return {**outputs, **by_token}

    def discriminate(self, inputs, training=None):
        """Logits of each token being a replaced one.

        Args:
            inputs: dict, as the backbone takes it.
            training: bool.

        Returns:
            float32 (b, l).
        """
        states = self.backbone.encoder(
            self.shared_embeddings(inputs, training=training),
            inputs["padding_mask"],
            states=True,
            training=training,
        )
        return self.head(states, inputs, training=training)

    def materialize(self):
        """Sets the backbone's own token table to the one that is in use.

        Where it is that already but for rounding, it stays, bit for bit, as loaded.
        """
        table, own = self.shared_embeddings.table(), self.backbone.token_embedding
        if table is None:
            return
        table, before = tf.cast(table, "float32"), tf.cast(own.embeddings, "float32")
        shared = self.shared_embeddings.generator_embedding.embeddings
        shared = tf.cast(shared, "float32")
        rounding = (tf.abs(shared) + tf.abs(table - shared)) * np.finfo("float32").eps
        table = tf.where(tf.abs(table - before) <= rounding, before, table)
        own.embeddings.assign(tf.cast(table, own.embeddings.dtype))

    def save_to_preset(self, preset_dir, max_shard_size=10):
        """`DebertaTask.save_to_preset`, the table of the backbone materialized."""
        self.materialize()
        super().save_to_preset(preset_dir, max_shard_size=max_shard_size)

    @property
    def own_weights(self):
        return [*self.backbone.weights, *self.head.weights]

    def load_checkpoint(self, checkpoint):
        tensors, table = dict(checkpoint.tensors), "embeddings.word_embeddings."
        delta = tensors.get(f"{table}_weight")
        shared = self.generator.backbone.token_embedding.embeddings
        if delta is not None and f"{table}weight" not in tensors:
            tensors[f"{table}weight"] = StoredTensor(
                delta.shape, delta.dtype, lambda: np.asarray(shared) + delta.read()
            )
        super().load_checkpoint(dataclasses.replace(checkpoint, tensors=tensors))
        if self.embedding_sharing == "gdes":
            own = tf.cast(self.backbone.token_embedding.embeddings, "float32")
            value = own - tf.cast(shared, "float32") if delta is None else delta.read()
            self.shared_embeddings.embedding_delta.assign(value)

    @classmethod
    def foreign_arguments(cls, checkpoint, dtype=None, embedding_sharing=None, **given):
        """The generator, and how the checkpoint shares its token table."""
        # With positions at the input the official code shares their table as well.
        positions = checkpoint.arguments.get("absolute_position_input", False)
        default = "none" if positions else "gdes"
        sharing = checkpoint.config.get("embedding_sharing", default).lower()
        arguments = {"embedding_sharing": "nes" if sharing == "none" else sharing}
        if "generator" not in given:
            arguments["generator"] = _load_generator(checkpoint, dtype)
        return arguments

    def foreign_entries(self):
        return {"embedding_sharing": self.embedding_sharing}

    def foreign_models(self, dtype):
        self.materialize()
        generator = self.generator.foreign_models(dtype)[""]
        return {**super().foreign_models(dtype), folders.GENERATOR: generator}

    @contextlib.contextmanager
    def _no_optimizer(self):
        with super()._no_optimizer(), self.generator._no_optimizer():
            yield

    def get_config(self):
        generator = keras.saving.serialize_keras_object(self.generator)
        # Presets hold the files of one tokenizer, that of the task.
        generator["config"]["preprocessor"] = None
        return {
            **super().get_config(),
            "generator": generator,
            "embedding_sharing": self.embedding_sharing,
            "num_tokens": self.num_tokens,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config["backbone"], dict):
            config["backbone"] = keras.saving.deserialize_keras_object(
                config["backbone"]
            )
        if isinstance(config["generator"], dict):
            config["generator"] = _revive(config["generator"], config["backbone"])
        return super().from_config(config)


def make_generator(backbone, num_layers=None, enhanced_mask_decoder=None):
    """A generator of the discriminator's geometry, with weights of its own.

    Args:
        backbone: `DebertaBackbone`, the discriminator's.
        num_layers: int; None: half of the discriminator's (SPEC 4.1).
        enhanced_mask_decoder: as `DebertaMaskedLM` takes it.
    """
    arguments = {
        **backbone.get_config(),
        "num_layers": num_layers or folders.generator_depth(backbone.num_layers),
        "dtype": backbone.dtype_policy,
    }
    for name in ("name", "trainable"):
        arguments.pop(name, None)
    return DebertaMaskedLM(
        DebertaBackbone(**arguments), enhanced_mask_decoder=enhanced_mask_decoder
    )


def _load_generator(checkpoint, dtype):
    """The generator beside a discriminator, or a fresh one of half its depth."""
    preset, has_weights = checkpoint.preset, bool(checkpoint.tensors)
    if preset is not None and folders.has_generator(preset):
        return DebertaMaskedLM.from_preset(
            preset, has_weights, generator=True, dtype=dtype, preprocessor=None
        )
    if has_weights:
        warnings.warn(
            f"{preset!r} has no generator: it is fresh, of half the depth", stacklevel=5
        )
    depth = folders.generator_depth(checkpoint.arguments["num_layers"])
    arguments = {**checkpoint.arguments, "num_layers": depth, "dtype": dtype}
    return DebertaMaskedLM(DebertaBackbone(**arguments))


def _check_pair(backbone, generator, embedding_sharing):
    if embedding_sharing not in EMBEDDING_SHARINGS:
        raise ValueError(
            f"embedding_sharing must be one of {', '.join(EMBEDDING_SHARINGS)}. "
            f"Received: {embedding_sharing!r}"
        )
    if generator.backbone is backbone:
        raise ValueError("generator must have a backbone of its own")
    shared = embedding_sharing != "nes"
    theirs = generator.backbone
    names = ["vocabulary_size", "num_segments"] + ["embedding_dim"] * shared
    pairs = {name: (getattr(backbone, name), getattr(theirs, name)) for name in names}
    pairs["dtype"] = (backbone.dtype_policy.name, theirs.dtype_policy.name)
    differing = [f"{k}={a!r} and {b!r}" for k, (a, b) in pairs.items() if a != b]
    if differing:
        raise ValueError(
            f"backbone and generator must agree where embedding_sharing="
            f"{embedding_sharing!r}. Received: {', '.join(differing)}"
        )
    if shared and backbone.absolute_position_input:
        raise ValueError(
            "A backbone with absolute_position_input=True needs embedding_sharing="
            f"'nes': positions are not shared. Received: {embedding_sharing!r}"
        )


def _revive(generator, backbone):
    """The generator of a config, in the dtype that the backbone was loaded in."""
    # `from_preset(dtype=…)` changes the config of the task's backbone alone.
    inner = generator["config"]["backbone"]
    policy = keras.dtype_policies.serialize(backbone.dtype_policy)
    inner = {**inner, "config": {**inner["config"], "dtype": policy}}
    config = {**generator["config"], "backbone": inner}
    return keras.saving.deserialize_keras_object({**generator, "config": config})
