"""Encoders of one geometry, of this project and of others, as calls to be timed.

Random weights, no dropout, a small vocabulary, so that what is timed are the blocks.
The two of Hugging Face are in PyTorch, where that is installed (`.venv-reference`).
"""

# PyTorch before TensorFlow: loaded after it, it crashes; what its optimizers load when
# they are made, too.
try:
    import torch
    import torch._dynamo
    import transformers
except ImportError:
    torch = transformers = None

import functools

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from deberta_tf.backbone import DebertaBackbone

VOCABULARY = 1_000
# v3-base but for the blocks, of which there are `num_layers`.
HEADS, WIDTH, INTERMEDIATE = 12, 768, 3072
LONGEST = 512
PADDED = 5

OURS = "deberta_tf"
GATHER = "deberta_tf, gather"
KERAS_HUB = "KerasHub DeBERTa v3"
BERT = "KerasHub BERT"
PYTORCH = "Hugging Face DeBERTa v3, PyTorch"
PYTORCH_BERT = "Hugging Face BERT, PyTorch"
TENSORFLOW_NAMES = (OURS, KERAS_HUB, BERT)
PYTORCH_NAMES = (PYTORCH, PYTORCH_BERT)


def make_ids(batch_size, length):
    """(ids, mask), int32 (b, l); the last few are padding."""
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (batch_size, length))
    mask = np.ones_like(ids)
    mask[:, length - PADDED :] = 0
    return ids.astype("int32"), mask.astype("int32")


def make_backbone(name, num_layers, attention_form="auto"):
    """A Keras encoder by its name."""
    sizes = (VOCABULARY, num_layers, HEADS, WIDTH, INTERMEDIATE)
    if name == KERAS_HUB:
        return keras_hub.models.DebertaV3Backbone(*sizes, dropout=0.0, bucket_size=256)
    if name == BERT:
        # Its absolute positions are rows of a table.
        return keras_hub.models.BertBackbone(
            *sizes, dropout=0.0, max_sequence_length=8 * LONGEST
        )
    form = "gather" if name == GATHER else attention_form
    return DebertaBackbone(
        *sizes,
        dropout=0.0,
        attention_dropout=0.0,
        max_sequence_length=LONGEST,
        attention_form=form,
    )


def tensorflow_calls(name, num_layers, ids, mask, jit_compile=False, **options):
    """{"forward", "train"}: callables of an encoder in TensorFlow."""
    backbone = make_backbone(name, num_layers, **options)
    inputs = {"token_ids": tf.constant(ids), "padding_mask": tf.constant(mask)}
    if name == BERT:
        inputs["segment_ids"] = tf.zeros_like(inputs["token_ids"])
    optimizer = keras.optimizers.AdamW(1e-5)
    variables = backbone.trainable_variables
    optimizer.build(variables)

    def run(training):
        output = backbone(inputs, training=training)
        return output["sequence_output"] if isinstance(output, dict) else output

    @functools.partial(tf.function, jit_compile=jit_compile)
    def forward():
        return run(False)

    @functools.partial(tf.function, jit_compile=jit_compile)
    def train():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(run(True)))
        values = [variable.value for variable in variables]
        # What the loss does not need: BERT's pooler.
        zeros = tf.UnconnectedGradients.ZERO
        optimizer.apply(tape.gradient(loss, values, unconnected_gradients=zeros))
        return loss

    return {"forward": lambda: forward().numpy(), "train": lambda: train().numpy()}


def pytorch_calls(name, num_layers, ids, mask, threads):
    """The same of an encoder in PyTorch."""
    torch.set_num_threads(threads)
    sizes = {
        "vocab_size": VOCABULARY,
        "num_hidden_layers": num_layers,
        "num_attention_heads": HEADS,
        "hidden_size": WIDTH,
        "intermediate_size": INTERMEDIATE,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if name == PYTORCH_BERT:
        config = transformers.BertConfig(**sizes, max_position_embeddings=8 * LONGEST)
        model = transformers.BertModel(config, add_pooling_layer=False)
    else:
        config = transformers.DebertaV2Config(
            **sizes,
            relative_attention=True,
            position_buckets=LONGEST // 2,
            max_position_embeddings=LONGEST,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            type_vocab_size=0,
        )
        model = transformers.DebertaV2Model(config)
    inputs = {
        "input_ids": torch.tensor(ids, dtype=torch.long),
        "attention_mask": torch.tensor(mask, dtype=torch.long),
    }
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)

    def forward():
        model.eval()
        with torch.inference_mode():
            return model(**inputs).last_hidden_state.numpy()

    def train():
        model.train()
        optimizer.zero_grad()
        loss = model(**inputs).last_hidden_state.square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return {"forward": forward, "train": train}
