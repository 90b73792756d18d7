"""The encoder of DeBERTa v1, v2 and v3, one class by its arguments."""

import inspect
import os

import keras
import keras_hub

from deberta_tf.attention import POSITION_TERMS
from deberta_tf.checkpoints import folders, keras_hub_presets, transfer, writer
from deberta_tf.embeddings import DebertaEmbeddings
from deberta_tf.encoder import DebertaEncoder
from deberta_tf.relative_position import RelativePositions

# A segment input exists only where the model has segments.
INPUT_NAMES = ("token_ids", "padding_mask", "segment_ids")


@keras.saving.register_keras_serializable("deberta_tf")
class DebertaBackbone(writer.HuggingFaceSaving, keras_hub.models.Backbone):
    """DeBERTa encoder: embeddings, then blocks of disentangled attention.

    The defaults make a v3 model. v1: `bucket_size=0,
    share_position_projections=False, key_bias=False,
    normalize_relative_embeddings=False`. The BERT baseline of the paper:
    `position_terms=(), absolute_position_input=True`.

    Args:
        vocabulary_size: int. Rows of the token table.
        num_layers: int. Blocks.
        num_heads: int.
        hidden_dim: int. Width of the hidden states.
        intermediate_dim: int. Width inside the feed-forward part.
        dropout: float. Rate on embeddings, the relative table (once per block) and
            the outputs of attention and feed-forward.
        attention_dropout: float. Rate on attention probabilities.
        max_sequence_length: int. Rows of the absolute-position table, where there
            is one (`absolute_position_input`, enhanced mask decoder). Relative
            attention has no longest length.
        max_relative_distance: int. Longest distance told apart, in tokens; None:
            `max_sequence_length`.
        bucket_size: int. Log buckets on each side of distance zero; 0: plain
            distances (v1).
        position_terms: tuple, any of "c2p" and "p2c"; empty: no relative positions.
        share_position_projections: bool. Project the relative table by each
            block's own key and query projections.
        key_bias: bool.
        normalize_relative_embeddings: bool. Layer norm over the relative table.
        absolute_position_input: bool. Add absolute positions to the embeddings.
        num_segments: int. Rows of the segment table; 0: no segments.
        embedding_dim: int. Width of the tables; None: `hidden_dim`. Another width
            is projected, without bias.
        head_dim: int. Width of a head; None: hidden_dim / num_heads.
        convolution_kernel_size: int, odd. Width in tokens of the convolution after
            the first block (v2 xlarge, xxlarge); 0: none.
        convolution_groups: int.
        convolution_activation: Keras activation.
        activation: Keras activation of the feed-forward part; "gelu" is exact.
        layer_norm_epsilon: float.
        clamp_distances: bool. See `RelativePositions`.
        gradient_checkpointing: bool. In training each block keeps its input alone, and
            is computed once more in the backward pass: less memory, more time.
        scan_layers: bool. The blocks are one loop, over weights that are stacked for
            it: a program that does not grow with their number, which XLA compiles
            faster and runs slower. Weights and checkpoints are the same.
        attention_form: str. "auto", "gather", "shift", "product" or "fused", see
            `DisentangledSelfAttention`.
        dtype: Keras dtype policy. Scores, softmax and layer norms are float32
            under all of them.

    Call arguments:
        inputs: dict of `token_ids` int (b, l); `padding_mask` int or bool (b, l), 1
            for tokens, or (b, l, l), 1 where a query (axis 1) may look at a key
            (axis 2); `segment_ids` int (b, l), where the model has segments.

    Returns:
        (b, l, hidden_dim). What stands at padding is of no meaning.

    Example:

    >>> backbone = DebertaBackbone(1000, 2, 4, 64, 256)
    >>> token_ids = np.ones((1, 8), "int32")
    >>> backbone({"token_ids": token_ids, "padding_mask": token_ids}).shape
    TensorShape([1, 8, 64])

    Source: He et al. 2021 (arXiv 2006.03654, 2111.09543); SPEC 1, 2, 7.
    """

    # How the name of Hugging Face's class ends.
    foreign_class = "Model"

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim,
        dropout=0.1,
        attention_dropout=0.1,
        max_sequence_length=512,
        max_relative_distance=None,
        bucket_size=256,
        position_terms=POSITION_TERMS,
        share_position_projections=True,
        key_bias=True,
        normalize_relative_embeddings=True,
        absolute_position_input=False,
        num_segments=0,
        embedding_dim=None,
        head_dim=None,
        convolution_kernel_size=0,
        convolution_groups=1,
        convolution_activation="gelu",
        activation="gelu",
        layer_norm_epsilon=1e-7,
        clamp_distances=True,
        attention_form="auto",
        gradient_checkpointing=False,
        scan_layers=False,
        dtype=None,
        **kwargs,
    ):
        arguments = {k: v for k, v in locals().items() if k in self.config_names()}
        check_arguments(type(self), kwargs)
        _check_sizes(**arguments)
        self.embeddings = DebertaEmbeddings(
            vocabulary_size,
            hidden_dim,
            embedding_dim=embedding_dim or hidden_dim,
            num_positions=max_sequence_length if absolute_position_input else 0,
            num_segments=num_segments,
            dropout=dropout,
            layer_norm_epsilon=layer_norm_epsilon,
            dtype=dtype,
            name="embeddings",
        )
        self.encoder = DebertaEncoder(
            num_layers,
            block={
                "attention": {
                    "num_heads": num_heads,
                    "head_dim": head_dim or hidden_dim // num_heads,
                    "relative_positions": RelativePositions(
                        bucket_size,
                        max_relative_distance or max_sequence_length,
                        clamp_distances,
                    ),
                    "position_terms": position_terms,
                    "share_position_projections": share_position_projections,
                    "key_bias": key_bias,
                    "dropout": attention_dropout,
                    "table_dropout": dropout,
                    "attention_form": attention_form,
                },
                "intermediate_dim": intermediate_dim,
                "activation": activation,
                "dropout": dropout,
                "layer_norm_epsilon": layer_norm_epsilon,
            },
            normalize_relative_embeddings=normalize_relative_embeddings,
            convolution_kernel_size=convolution_kernel_size,
            convolution_groups=convolution_groups,
            convolution_activation=convolution_activation,
            gradient_checkpointing=gradient_checkpointing,
            scan_layers=scan_layers,
            dtype=dtype,
            name="encoder",
        )
        names = INPUT_NAMES if num_segments else INPUT_NAMES[:2]
        inputs = {
            name: keras.Input((None,), dtype="int32", name=name) for name in names
        }
        outputs = self.call(inputs)
        super().__init__(inputs=inputs, outputs=outputs, dtype=dtype, **kwargs)
        for name, value in arguments.items():
            setattr(self, name, value)
        self.position_terms = tuple(position_terms)
        self.embedding_dim = embedding_dim or hidden_dim
        self.head_dim = head_dim or hidden_dim // num_heads
        # Keras would hold a padding mask to the rank of its symbolic input.
        self.input_spec = None

    def call(self, inputs, training=None, mask=None):
        # All states, though only the last is returned: Keras's graph of a task
        # allows a layer no more outputs than it had when it was first called.
        return self.hidden_states(inputs, training=training)[-1]

    def hidden_states(self, inputs, training=False):
        """All hidden states, embeddings first: num_layers + 1 of (b, l, hidden)."""
        states = self.embeddings(inputs, training=training)
        mask = inputs["padding_mask"]
        return self.encoder(states, mask, states=True, training=training)

    def freeze(self, num_blocks):
        """Keeps the lower layers as they are in training.

        Args:
            num_blocks: int. Blocks from below; before them the embeddings. With a
                block also what all of them share, the table of relative positions.
                A masked-LM head shares the token table.

        To be called before `compile`; it thaws nothing.

        Raises:
            ValueError: if there are not so many.
        """
        encoder = self.encoder
        if not 0 <= num_blocks <= self.num_layers:
            raise ValueError(
                f"num_blocks must be in [0, {self.num_layers}]. Received: {num_blocks}"
            )
        frozen = [self.embeddings, *encoder.blocks[:num_blocks]]
        if num_blocks:
            shared = encoder.relative_embeddings, encoder.relative_norm
            # The convolution adds to what the first block gives.
            frozen += [one for one in (*shared, encoder.convolution) if one is not None]
        for one in frozen:
            one.trainable = False

    @property
    def token_embedding(self):
        """The layer of the token table, which a masked-LM head shares."""
        return self.embeddings.token_embedding

    @staticmethod
    def config_names():
        """Names of the constructor's own arguments, as they stand in the config."""
        names = inspect.signature(DebertaBackbone.__init__).parameters
        return [name for name in names if name not in ("self", "dtype", "kwargs")]

    def get_config(self):
        own = {name: getattr(self, name) for name in self.config_names()}
        own["position_terms"] = list(self.position_terms)
        return {**super().get_config(), **own}

    @classmethod
    def from_preset(cls, preset, load_weights=True, **overrides):
        """Builds a backbone from a published size, a folder or a handle.

        Args:
            preset: str. A published size ("deberta_v3_base", see
                `published.PUBLISHED_SIZES`); a folder written by `save_to_preset`; a
                Hugging Face / Microsoft folder (`config.json` beside
                `model.safetensors` or `pytorch_model.bin`, whole or in shards);
                "hf://owner/name" of either; a preset of KerasHub's
                `DebertaV3Backbone`. Heads that a folder holds are left unread.
            load_weights: bool. False: fresh weights of that geometry.
            overrides: constructor arguments that replace those of the preset.

        Raises:
            ValueError: if the preset is unknown, or its tensors do not fit.
        """
        preset = os.fspath(preset)
        checkpoint = folders.open_checkpoint(preset, load_weights)
        if checkpoint is None:
            return super().from_preset(preset, load_weights=load_weights, **overrides)
        backbone = cls(**{**checkpoint.arguments, **overrides})
        if load_weights:
            transfer.assign(backbone.weights, checkpoint.tensors)
        return backbone

    def enable_lora(self, rank, target_layer_names=None):
        """KerasHub's own; nothing but the adapters is trained.

        It leaves the biases of the layers that get one free, and does not save them
        with the adapters.

        Args:
            rank: int.
            target_layer_names: list of str, of dense layers; None: KerasHub's, "query"
                and "value" among them.

        Raises:
            ValueError: if one of the names is that of no dense layer.
        """
        layers = self._flatten_layers(include_self=False)
        known = {one.name for one in layers if isinstance(one, keras.layers.Dense)}
        wrong = sorted(set(target_layer_names or ()) - known)
        if wrong:
            raise ValueError(
                f"target_layer_names must be of {', '.join(sorted(known))}. "
                f"Received: {', '.join(wrong)}"
            )
        super().enable_lora(rank, target_layer_names)
        for layer in transfer.adapters_of(self).values():
            if layer.bias is not None:
                layer.bias.trainable = False

    def foreign_models(self, dtype):
        """What a Hugging Face folder of it holds, see `writer.write_folder`."""
        tensors = transfer.stored_tensors(self, self.weights, dtype)
        return {"": writer.Model(self.get_config(), tensors, {}, self.foreign_class)}

    def save_to_keras_hub(self, directory, tokenizer=None):
        """Writes a preset of KerasHub's `DebertaV3Backbone` (v3 only).

        Args:
            directory: str. The folder; an earlier preset is replaced.
            tokenizer: `DebertaSentencePieceTokenizer` to write beside it, or None.

        Raises:
            ValueError: if KerasHub's class can't be such a model, or the folder holds
                what is no part of a preset.
        """
        tensors = transfer.stored_tensors(self, self.weights)
        keras_hub_presets.write_preset(directory, self.get_config(), tensors, tokenizer)


def check_arguments(kind, kwargs, known=()):
    """Refuses arguments that nobody takes: Keras would drop them in silence."""
    unknown = sorted(kwargs.keys() - {"name", "trainable", *known})
    if unknown:
        raise TypeError(f"{kind.__name__} has no argument {', '.join(unknown)}")


def _check_sizes(hidden_dim, num_heads, num_layers, head_dim, **others):
    if num_heads < 1:
        raise ValueError(
            f"num_heads must be at least 1. Received: num_heads={num_heads}"
        )
    if head_dim is None and hidden_dim % num_heads:
        raise ValueError(
            "hidden_dim must be divisible by num_heads unless head_dim is given. "
            f"Received: hidden_dim={hidden_dim}, num_heads={num_heads}"
        )
    if num_layers < 1:
        raise ValueError(
            f"num_layers must be at least 1. Received: num_layers={num_layers}"
        )
    kernel_size, groups = (
        others["convolution_kernel_size"],
        others["convolution_groups"],
    )
    if kernel_size and kernel_size % 2 == 0:
        raise ValueError(
            "convolution_kernel_size must be odd, or 0 for none. "
            f"Received: convolution_kernel_size={kernel_size}"
        )
    if kernel_size and hidden_dim % groups:
        raise ValueError(
            "hidden_dim must be divisible by convolution_groups. "
            f"Received: hidden_dim={hidden_dim}, convolution_groups={groups}"
        )
