import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.masked_lm import DebertaMaskedLM, DebertaMaskedLMPreprocessor
from deberta_tf.tokenizers import DebertaSentencePieceTokenizer
from tests.small_models import every_policy, make_backbone, randomize


@pytest.fixture
def tokenizer(sentencepiece_proto):
    return DebertaSentencePieceTokenizer(sentencepiece_proto)


def make_batch(batch=4, length=20, count=5, seed=0):
    rng = np.random.default_rng(seed)
    inputs = {
        "token_ids": rng.integers(5, 100, (batch, length)).astype("int32"),
        "padding_mask": np.ones((batch, length), "int32"),
        "mask_positions": np.sort(
            rng.permuted(np.tile(np.arange(1, length), (batch, 1)), axis=1)[:, :count]
        ).astype("int32"),
    }
    labels = np.take_along_axis(inputs["token_ids"], inputs["mask_positions"], 1)
    return inputs, labels, np.ones((batch, count), "float32")


def test_absolute_positions_enter_in_the_decoder_only():
    masked_lm = DebertaMaskedLM(make_backbone())
    randomize(masked_lm)
    inputs, _, _ = make_batch()
    states, logits = masked_lm.backbone(inputs), masked_lm(inputs)
    table = masked_lm.head.decoder.position_embedding.embeddings
    table.assign(table + np.random.default_rng(2).normal(size=table.shape))
    np.testing.assert_array_equal(masked_lm.backbone(inputs), states)
    assert np.abs(masked_lm(inputs) - logits).max() > 0.1


def test_the_decoder_runs_the_last_block_twice_on_one_memory():
    masked_lm = DebertaMaskedLM(make_backbone())
    randomize(masked_lm)
    inputs, _, _ = make_batch()
    backbone, head = masked_lm.backbone, masked_lm.head
    memory = backbone.hidden_states(inputs)[-2]
    query = memory + head.decoder.position_embedding.embeddings[: memory.shape[1]]
    for _ in range(2):
        query = backbone.encoder.last_block(query, memory, inputs["padding_mask"])
    table = backbone.token_embedding.embeddings
    expected = head.layer_norm(head.dense(query)) @ tf.transpose(table) + head.bias
    everywhere = masked_lm(
        {name: inputs[name] for name in ("token_ids", "padding_mask")}
    )
    np.testing.assert_allclose(everywhere, expected, atol=1e-4)


@pytest.mark.parametrize("absolute_position_input", [False, True])
def test_masked_positions_get_the_logits_of_the_whole_row(absolute_position_input):
    masked_lm = DebertaMaskedLM(
        make_backbone(absolute_position_input=absolute_position_input)
    )
    randomize(masked_lm)
    inputs, _, _ = make_batch()
    chosen = masked_lm(inputs)
    positions = inputs.pop("mask_positions")
    everywhere = masked_lm(inputs)
    np.testing.assert_allclose(
        chosen, tf.gather(everywhere, positions, batch_dims=1), atol=1e-4
    )


def test_both_runs_of_the_decoder_look_at_keys_made_once(monkeypatch):
    masked_lm = DebertaMaskedLM(make_backbone())
    inputs, _, _ = make_batch()
    masked_lm(inputs)
    dense = masked_lm.backbone.encoder.blocks[-1].attention.value_dense
    calls, call = [], dense.call
    monkeypatch.setattr(
        dense, "call", lambda *args, **kwargs: calls.append(1) or call(*args, **kwargs)
    )
    masked_lm(inputs)
    assert len(calls) == 1


def test_the_last_block_runs_for_the_decoder_alone():
    masked_lm = DebertaMaskedLM(make_backbone(num_layers=1))
    inputs, _, _ = make_batch()
    calls = []
    block = masked_lm.backbone.encoder.blocks[0]
    original = block.call
    block.call = lambda query, **kwargs: (
        calls.append(query.shape) or original(query, **kwargs)
    )
    masked_lm(inputs)
    assert calls == [(4, 5, 16), (4, 5, 16)]


def test_a_table_narrower_than_the_states_is_projected_in_the_decoder():
    masked_lm = DebertaMaskedLM(make_backbone(embedding_dim=8))
    inputs, _, _ = make_batch()
    assert masked_lm(inputs).shape == (4, 5, 104)
    assert masked_lm.head.decoder.position_embedding.embeddings.shape == (24, 8)


def test_the_loss_divides_by_the_sum_of_weights():
    masked_lm = DebertaMaskedLM(make_backbone())
    randomize(masked_lm)
    inputs, labels, weights = make_batch()
    weights[0, 1:] = 0.0
    weights[2] = 0.0
    loss = masked_lm.test_on_batch(inputs, labels, weights)[0]
    logits = masked_lm(inputs).numpy().astype("float64")
    log_sums = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    expected = ((log_sums - chosen) * weights).sum() / weights.sum()
    assert abs(loss - expected) < 1e-4


def test_rows_beyond_the_decoders_positions_are_refused():
    masked_lm = DebertaMaskedLM(make_backbone())
    inputs, _, _ = make_batch(length=25)
    with pytest.raises(ValueError, match="max_sequence_length=24, .* 25 tokens"):
        masked_lm(inputs)


def test_it_learns_words_but_not_shuffled_labels(sentences, tokenizer):
    def last_loss(shuffled):
        keras.utils.set_random_seed(1)
        masked_lm = DebertaMaskedLM(make_backbone(num_layers=1))
        masked_lm.compile(keras.optimizers.Adam(1e-2), global_clipnorm=1.0)
        preprocessor = DebertaMaskedLMPreprocessor(tokenizer, 24, max_ngram=1)
        x, labels, weights = preprocessor(sentences)
        labels = labels.numpy()
        if shuffled:
            real = weights.numpy() > 0
            labels[real] = np.random.default_rng(0).permutation(labels[real])
        history = masked_lm.fit(
            x, labels, 50, sample_weight=weights, epochs=30, verbose=0
        )
        return history.history["loss"][-1]

    learned, control = last_loss(False), last_loss(True)
    assert learned < 0.6 * control


@every_policy
def test_it_fits_under_every_policy_compiled_or_not(policy, jit_compile):
    masked_lm = DebertaMaskedLM(make_backbone(num_layers=1, dtype=policy))
    masked_lm.compile(
        keras.optimizers.Adam(1e-2), global_clipnorm=1.0, jit_compile=jit_compile
    )
    inputs, labels, weights = make_batch()
    history = masked_lm.fit(
        inputs, labels, 4, sample_weight=weights, epochs=12, verbose=0
    )
    losses = history.history["loss"]
    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[0] - 0.5
    assert masked_lm(inputs).dtype == "float32"


def test_raw_strings_are_masked_packed_and_predicted(sentences, tokenizer):
    preprocessor = DebertaMaskedLMPreprocessor(tokenizer, 24)
    masked_lm = DebertaMaskedLM(make_backbone(), preprocessor)
    history = masked_lm.fit(sentences[:8], batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert masked_lm.predict(sentences[:3], verbose=0).shape == (3, 10, 104)


def test_masked_tokens_can_be_put_back(sentences, tokenizer):
    preprocessor = DebertaMaskedLMPreprocessor(tokenizer, 64)
    x, labels, weights = preprocessor(tf.constant(sentences[:5]))
    ids = x["token_ids"].numpy()
    for row in range(5):
        count = int(weights[row].numpy().sum())
        assert count > 0
        ids[row, x["mask_positions"][row, :count]] = labels[row, :count]
        text = tokenizer.detokenize(ids[row][x["padding_mask"][row].numpy() > 0])
        assert text.numpy().decode() == sentences[row]


def test_one_string_is_masked_without_a_batch_axis(sentences, tokenizer):
    preprocessor = DebertaMaskedLMPreprocessor(tokenizer, 24)
    x, labels, weights = preprocessor(sentences[0])
    assert x["token_ids"].shape == (24,)
    assert labels.shape == weights.shape == (10,)


def test_two_calls_draw_two_masks(sentences, tokenizer):
    preprocessor = DebertaMaskedLMPreprocessor(tokenizer, 24)
    first, second = (preprocessor(sentences)[0]["mask_positions"] for _ in range(2))
    assert np.any(first != second)


def test_a_preset_comes_back_with_weights_and_tokenizer(tmp_path, sentences, tokenizer):
    preprocessor = DebertaMaskedLMPreprocessor(tokenizer, 24, max_ngram=2)
    masked_lm = DebertaMaskedLM(make_backbone(), preprocessor)
    randomize(masked_lm)
    masked_lm.save_to_preset(str(tmp_path / "preset"))
    loaded = keras_hub.models.MaskedLM.from_preset(str(tmp_path / "preset"))
    assert type(loaded) is DebertaMaskedLM
    inputs, _, _ = make_batch()
    np.testing.assert_array_equal(loaded(inputs), masked_lm(inputs))
    assert loaded.preprocessor.max_ngram == 2
    ids = loaded.preprocessor.tokenizer.tokenize(sentences).to_list()
    assert ids == tokenizer.tokenize(sentences).to_list()


def test_a_keras_file_comes_back_whole(tmp_path, tokenizer):
    preprocessor = DebertaMaskedLMPreprocessor(tokenizer, 24)
    masked_lm = DebertaMaskedLM(make_backbone(), preprocessor)
    randomize(masked_lm)
    masked_lm.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    inputs, _, _ = make_batch()
    np.testing.assert_array_equal(loaded(inputs), masked_lm(inputs))
