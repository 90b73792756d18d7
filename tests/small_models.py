"""Models small enough to test with."""

import io

import numpy as np
import pytest
import sentencepiece

from deberta_tf.backbone import DebertaBackbone
from deberta_tf.byte_pair import byte_alphabet
from deberta_tf.tokenizers import DebertaBytePairTokenizer

# Each policy, and both ways to run, in three cases; the others are slow.
every_policy = pytest.mark.parametrize(
    ("policy", "jit_compile"),
    [
        ("float32", False),
        ("mixed_bfloat16", True),
        ("mixed_float16", False),
        pytest.param("float32", True, marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", False, marks=pytest.mark.slow),
        pytest.param("mixed_float16", True, marks=pytest.mark.slow),
    ],
)


def make_backbone(**kwargs):
    """Two blocks of width 16 for up to 104 tokens, without dropout."""
    arguments = {
        "vocabulary_size": 104,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "max_sequence_length": 24,
        "bucket_size": 8,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return DebertaBackbone(**{**arguments, **kwargs})


def randomize(model, seed=1):
    """Moves every weight by Normal(0, 0.2), so that each of them matters."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(weight + rng.normal(size=weight.shape) * 0.2)


def byte_pair_tokenizer():
    """GPT-2's bytes and five merges, the special tokens after them: 266 ids."""
    merges = ["t h", "th e", "\u0120 the", "\u00c3 \u00af", "\u00f0 \u0141"]
    tokens = [*byte_alphabet(), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return DebertaBytePairTokenizer(vocabulary, merges)


def train_sentencepiece(sentences, vocabulary_size):
    """Serialized SentencePiece model in DeBERTa v3's layout of ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=vocabulary_size,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        minloglevel=2,
    )
    return model.getvalue()
