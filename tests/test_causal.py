import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.causal import causal_inputs, joined_inputs
from deberta_tf.files import UsageError
from deberta_tf.masked_lm import DebertaMaskedLM
from tests.small_models import make_backbone, randomize
from tests.test_strategies import make_optimizer
from tests.test_trainers_pretrain import LENGTH, config_of, data
from trainers import pretrain, pretraining_data
from trainers.config import parse

__all__ = ["data"]


def rows(count=4, length=9):
    token_ids = np.random.default_rng(2).integers(5, 100, (count, length))
    padding_mask = np.ones_like(token_ids)
    padding_mask[1, 6:] = 0
    return token_ids, padding_mask


@pytest.mark.parametrize("emd", [True, False])
def test_no_token_sees_those_after_it(emd):
    masked_lm = DebertaMaskedLM(make_backbone(), enhanced_mask_decoder=emd)
    randomize(masked_lm)
    token_ids, padding_mask = rows()
    inputs, labels, weights = causal_inputs(token_ids, padding_mask)
    before = masked_lm(inputs)
    np.testing.assert_array_equal(labels, token_ids[:, 1:])
    np.testing.assert_array_equal(weights, padding_mask[:, 1:])
    changed = token_ids.copy()
    changed[:, 5] += 1
    after = masked_lm(causal_inputs(changed, padding_mask)[0])
    difference = np.abs(after - before).max(axis=2)
    np.testing.assert_array_equal(difference[:, :5], 0)
    assert np.all(difference[:, 5] > 1e-4)


def test_rows_keep_their_objective():
    token_ids, padding_mask = rows()
    masked = (
        {
            "token_ids": tf.constant(token_ids + 1, "int32"),
            "padding_mask": tf.constant(padding_mask),
            "mask_positions": tf.constant([[2, 4, 0]] * 4),
        },
        tf.constant([[7, 8, 0]] * 4),
        tf.constant([[1.0, 1.0, 0.0]] * 4),
    )
    causal = causal_inputs(token_ids, padding_mask)
    is_causal = tf.constant([True, False, False, True])
    inputs, labels, weights = joined_inputs(masked, causal, is_causal, 0.25)
    assert labels.shape == weights.shape == inputs["mask_positions"].shape == (4, 8)
    np.testing.assert_array_equal(labels[1], [7, 8, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(weights[2], [1, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(weights[3], 0.25 * causal[2][3])
    np.testing.assert_array_equal(inputs["token_ids"][2], token_ids[2] + 1)
    np.testing.assert_array_equal(inputs["token_ids"][3], token_ids[3])
    real = padding_mask[1] > 0
    np.testing.assert_array_equal(inputs["padding_mask"][1], np.outer(real, real))
    expected = np.tril(np.ones((9, 9), bool))
    np.testing.assert_array_equal(inputs["padding_mask"][3], expected)


@pytest.mark.slow
def test_the_next_token_is_learnt():
    """Of a language where each token is told by the one before, and of noise."""
    losses = {}
    for name in ("language", "noise"):
        rng = np.random.default_rng(0)
        first = rng.integers(5, 100, (64, 1))
        token_ids = 5 + (first + 7 * np.arange(12)) % 95
        if name == "noise":
            token_ids = rng.integers(5, 100, (64, 12))
        batch = causal_inputs(token_ids, np.ones_like(token_ids))
        masked_lm = DebertaMaskedLM(make_backbone(num_layers=1, hidden_dim=32))
        optimizer = make_optimizer()
        optimizer.learning_rate.assign(1e-2)
        masked_lm.compile(optimizer, weighted_metrics=None)
        dataset = tf.data.Dataset.from_tensors(batch).repeat(100)
        masked_lm.fit(dataset, verbose=0)
        fresh = rng.integers(5, 100, (64, 1))
        held_out = 5 + (fresh + 7 * np.arange(12)) % 95
        batch = causal_inputs(held_out, np.ones_like(held_out))
        dataset = tf.data.Dataset.from_tensors(batch)
        scores = masked_lm.evaluate(dataset, return_dict=True, verbose=0)
        losses[name] = scores["loss"]
    assert losses["language"] < 1.0
    assert losses["noise"] > 4.0


def test_the_trainer_scores_the_perplexity_of_causal_rows(data, tmp_path):
    held_out = str(data / "rows" / "held_out")
    config = config_of(data, tmp_path, objective="masked_and_causal", held_out=held_out)
    task = pretrain.build_task(config, LENGTH)
    pretrain.compile_task(task, config, pretrain.run.make_schedule(config, 6, 2))
    some = pretrain.PretrainingRows(held_out)
    found = pretrain.held_out_evaluation(config, task, some).evaluate(task)
    total = count = 0.0
    for row in some.take(range(len(some))):
        real = row[None] != 0
        inputs, labels, weights = causal_inputs(row[None].astype("int32"), real)
        logits = task(inputs, training=False)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        total, count = total + np.sum(losses * weights), count + np.sum(weights)
    np.testing.assert_allclose(found["perplexity"], np.exp(total / count), rtol=1e-4)
    batches = pretraining_data.training_batches(config, task, some, 0, 1)
    inputs, _, weights = next(iter(batches))
    causal = np.all(np.triu(inputs["padding_mask"], 1) == 0, axis=(1, 2))
    np.testing.assert_array_equal(causal, np.arange(8) % 2 == 1)
    followed = np.sum(inputs["token_ids"][causal][:, 1:] != 0)
    np.testing.assert_allclose(np.sum(weights[causal]), 0.15 * followed, rtol=1e-6)
    assert np.sum(weights[~causal]) > 0


def test_a_model_that_looks_ahead_is_refused(data, tmp_path):
    config = config_of(
        data, tmp_path, objective="masked_and_causal", convolution_kernel_size=3
    )
    with pytest.raises(UsageError, match="without the convolution"):
        pretrain.build_task(config, LENGTH)


ABLATIONS = {
    "enhanced_mask_decoder=false": (("c2p", "p2c"), False, False),
    "position_terms=p2c": (("p2c",), True, False),
    "position_terms=c2p": (("c2p",), True, False),
    "absolute_position_input=true": (("c2p", "p2c"), False, True),
}


@pytest.mark.parametrize("flag", ABLATIONS)
def test_each_ablation_is_one_flag(data, tmp_path, flag):
    name, value = flag.split("=")
    task = pretrain.build_task(config_of(data, tmp_path, **{name: value}), LENGTH)
    terms, has_decoder, at_input = ABLATIONS[flag]
    block = task.backbone.encoder.blocks[0]
    assert tuple(block.attention.position_terms) == terms
    assert (task.head.decoder is not None) == has_decoder
    assert task.backbone.absolute_position_input == at_input


@pytest.mark.parametrize(
    "recipe",
    [
        "pretrain_ablations",
        "pretrain_bert_baseline",
        "pretrain_base",
        "pretrain_v3_small",
    ],
)
def test_recipes_are_read(recipe):
    settings = ["--data=x", "--model_dir=y", "--tokenizer=z"]
    path = f"trainers/recipes/{recipe}.yaml"
    config = parse(pretrain.PretrainConfig, [f"--config={path}", *settings])
    if recipe == "pretrain_bert_baseline":
        assert config.position_terms == ()
        assert config.absolute_position_input
    if recipe == "pretrain_v3_small":
        assert config.objective == "replaced_token"
