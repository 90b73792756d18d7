import pkgutil

import keras
import numpy as np
import pytest

from deberta_tf.distribution import StrategyFit
from deberta_tf.private_hooks import PRIVATE_HOOKS
from deberta_tf.sentencepiece_resource import SharedModelResource
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer


@pytest.mark.parametrize("owner", PRIVATE_HOOKS)
def test_the_private_hooks_are_still_there(owner):
    for name in PRIVATE_HOOKS[owner]:
        assert hasattr(pkgutil.resolve_name(owner), name), f"{owner} lacks {name}"


def test_a_compiled_model_still_tracks_its_loss():
    model = Line()
    model.compile("sgd", "mse")
    assert model._loss_tracker.name == "loss"


def test_a_tokenizer_still_holds_its_model_by_name(sentencepiece_proto):
    tokenizer = DebertaSentencePieceTokenizer(sentencepiece_proto)
    resource = tokenizer._sentence_piece._model_resource
    assert isinstance(resource, SharedModelResource)


class Line(StrategyFit, keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(1)

    def call(self, x, training=None):
        return self.dense(x)


def fitted(model_class, optimizer):
    keras.utils.set_random_seed(5)
    model = model_class()
    model.compile(optimizer, "mse", jit_compile=False)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 4))
    model.fit(x, x.sum(1), batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model


def test_the_step_is_that_of_keras():
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x, training=None):
            return self.dense(x)

    ours = fitted(Line, keras.optimizers.AdamW(1e-2))
    plain = fitted(Plain, keras.optimizers.AdamW(1e-2))
    for one, other in zip(ours.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert ours.history.history["loss"] == plain.history.history["loss"]


def test_the_compiled_state_survives_its_config():
    model, other = Line(), Line()
    model.compile(keras.optimizers.AdamW(1e-2), "mse", global_clipnorm=0.5)
    other.compile_from_config(model.get_compile_config())
    assert other.global_clipnorm == 0.5
    assert other.optimizer.get_config() == model.optimizer.get_config()
