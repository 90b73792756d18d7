"""Choices, entities and marked spans: raw inputs, what is learned."""

import keras
import numpy as np
import pytest

import deberta_tf
from deberta_tf.packing import pack_strings
from tests.served_tasks import ENTITIES, MARKED
from tests.small_models import make_backbone, randomize


@pytest.fixture(scope="module")
def tokenizer(sentencepiece_proto):
    return deberta_tf.DebertaSentencePieceTokenizer(sentencepiece_proto)


TEXTS = ["the jury explained that song.", "nobody sold the harbour."]
CHOICES = [["yes", "no", "my sister"], ["frozen peas", "", "a grey cat"]]


def choice_task(tokenizer):
    preprocessor = deberta_tf.DebertaMultipleChoicePreprocessor(tokenizer, 32)
    return deberta_tf.DebertaMultipleChoice(
        make_backbone(num_layers=1, num_segments=2), preprocessor=preprocessor
    )


def test_every_choice_is_a_row_with_its_text(tokenizer):
    rows = deberta_tf.DebertaMultipleChoicePreprocessor(tokenizer, 32)((TEXTS, CHOICES))
    for i, j in np.ndindex(2, 3):
        one = pack_strings(tokenizer, ([TEXTS[i]], [CHOICES[i][j]]), 32)
        for name, row in rows.items():
            np.testing.assert_array_equal(row[i, j], one[name][0])


def test_choices_may_have_a_text_each(tokenizer):
    preprocessor = deberta_tf.DebertaMultipleChoicePreprocessor(tokenizer, 32)
    swapped = preprocessor((CHOICES, [[text] * 3 for text in TEXTS]))
    one = pack_strings(tokenizer, ([CHOICES[1][2]], [TEXTS[1]]), 32)
    np.testing.assert_array_equal(swapped["token_ids"][1, 2], one["token_ids"][0])


def test_choices_of_one_axis_are_refused(tokenizer):
    preprocessor = deberta_tf.DebertaMultipleChoicePreprocessor(tokenizer, 32)
    with pytest.raises(ValueError, match=r"choices must be \(b, c\)"):
        preprocessor((TEXTS, ["yes", "no"]))


@pytest.mark.slow
def test_it_learns_to_choose(tokenizer, sentences):
    labels = np.arange(64) % 2
    pairs = np.array(["the jury sold", "my sister painted"])
    choices = [pairs[[label, 1 - label]].tolist() for label in labels]
    task = choice_task(tokenizer)
    task.compile(keras.optimizers.Adam(1e-2))
    x = sentences[:64], choices
    task.fit(x, labels, batch_size=16, epochs=6, verbose=0)
    assert task.evaluate(x, labels, verbose=0)[1] > 0.95


ANSWERS = [[0, 1, 0], [0, 0, 1]]


@pytest.fixture
def entity_preprocessor(tokenizer):
    return deberta_tf.DebertaEntityScorerPreprocessor(
        tokenizer, 48, overlap=8, max_entities=5, max_entity_length=6
    )


def entity_task(preprocessor):
    task = deberta_tf.DebertaEntityScorer(
        make_backbone(num_layers=1, max_sequence_length=64), preprocessor=preprocessor
    )
    randomize(task)
    return task


def texts_at(tokenizer, row, positions):
    return [
        tokenizer.detokenize(row[places[places > 0]]).numpy().decode()
        for places in positions
    ]


def test_entities_are_found_where_they_stand(entity_preprocessor):
    tokenizer = entity_preprocessor.tokenizer
    inputs, labels, weights = entity_preprocessor(ENTITIES, y=ANSWERS)
    ids, positions = inputs["token_ids"].numpy(), inputs["entity_positions"].numpy()
    found = [texts_at(tokenizer, *pair) for pair in zip(ids, positions, strict=True)]
    assert found[0] == ["Doctor Quinn", "Oslo", "captain", "", ""]
    # The last stands beyond the first window.
    assert found[1] == ["Doctor Quinn", "Oslo", "", "", ""]
    assert weights.numpy().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert labels.numpy().tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]


def test_one_mask_stands_for_the_first_gap(entity_preprocessor):
    tokenizer = entity_preprocessor.tokenizer
    ids = entity_preprocessor(ENTITIES)["token_ids"].numpy()
    for row in range(2):
        assert np.sum(ids[row] == tokenizer.mask_token_id) == 1
    left, right = ENTITIES["query"][0].split("@placeholder")
    query = [
        *tokenizer.tokenize(left).numpy(),
        tokenizer.mask_token_id,
        *tokenizer.tokenize(right).numpy(),
        tokenizer.sep_token_id,
    ]
    row = ids[0][ids[0] != tokenizer.pad_token_id]
    assert row[-len(query) :].tolist() == query


def test_windows_together_hold_every_entity(entity_preprocessor):
    windows = entity_preprocessor.windows(ENTITIES)
    example = windows["example"].numpy()
    there = windows["entity_positions"].numpy().max(axis=-1) > 0
    for number in range(2):
        own = there[example == number].any(axis=0)
        assert own.tolist() == [True, True, True, False, False]


def test_an_entity_has_the_mean_of_its_windows(entity_preprocessor):
    task = entity_task(entity_preprocessor)
    windows = entity_preprocessor.windows(ENTITIES)
    logits = task.predict(task.inputs_in(windows), verbose=0)
    there = windows["entity_positions"].numpy().max(axis=-1) > 0
    scores = task.score_entities(ENTITIES)
    for number, entity in np.ndindex(2, 3):
        rows = (windows["example"].numpy() == number) & there[:, entity]
        expected = np.mean(-np.log1p(np.exp(-logits[rows, entity])))
        assert scores[number, entity] == pytest.approx(expected, abs=1e-4)
    assert np.all(np.isneginf(scores[:, 3:]))
    one_by_one = task.score_entities(ENTITIES, batch_size=1)
    np.testing.assert_allclose(one_by_one, scores, atol=1e-5)


@pytest.mark.slow
def test_it_learns_which_entity_answers(entity_preprocessor):
    task = entity_task(entity_preprocessor)
    task.compile(keras.optimizers.Adam(1e-2))
    many = {name: value * 8 for name, value in ENTITIES.items()}
    task.fit(many, ANSWERS * 8, batch_size=8, epochs=12, verbose=0)
    assert task.evaluate(many, ANSWERS * 8, verbose=0)[1] > 0.95


def marked_task(tokenizer):
    preprocessor = deberta_tf.DebertaSpanClassifierPreprocessor(tokenizer, 40)
    task = deberta_tf.DebertaSpanClassifier(
        make_backbone(num_layers=1, max_sequence_length=64),
        labels=["other", "same"],
        preprocessor=preprocessor,
    )
    randomize(task)
    return task


def test_marked_spans_are_found_in_their_texts(tokenizer):
    inputs = deberta_tf.DebertaSpanClassifierPreprocessor(tokenizer, 40)(MARKED)
    spans = [
        [
            tokenizer.detokenize(row[first:last]).numpy().decode()
            for first, last in places
        ]
        for row, places in zip(
            inputs["token_ids"].numpy(), inputs["span_positions"].numpy(), strict=True
        )
    ]
    assert spans == [["captain", "sister"], ["cat", "cat"]]


def test_both_spans_may_be_of_one_text(tokenizer):
    one = {
        "text": ["the cat watched her"],
        "span_starts": [[4, 16]],
        "span_ends": [[7, 19]],
    }
    inputs = deberta_tf.DebertaSpanClassifierPreprocessor(tokenizer, 40)(one)
    row, places = inputs["token_ids"].numpy()[0], inputs["span_positions"].numpy()[0]
    texts = [tokenizer.detokenize(row[a:b]).numpy().decode() for a, b in places]
    assert texts == ["cat", "her"]


def test_a_span_that_is_cut_off_has_no_positions(tokenizer):
    inputs = deberta_tf.DebertaSpanClassifierPreprocessor(tokenizer, 6)(
        {**MARKED, "span_starts": [[8, 3], [0, 8]], "span_ends": [[15, 9], [1, 11]]}
    )
    assert inputs["span_positions"][0, 0].numpy().tolist() == [0, 0]


def test_the_head_reads_the_first_token_and_both_means(tokenizer):
    task = marked_task(tokenizer)
    inputs = task.inputs_in(task.preprocessor(MARKED))
    states = task.backbone(inputs).numpy()
    places = inputs["span_positions"].numpy()
    rows = []
    for state, spans in zip(states, places, strict=True):
        means = [state[first:last].mean(axis=0) for first, last in spans]
        rows.append(np.concatenate([state[0], *means]))
    x = task.head.hidden(np.array(rows))
    np.testing.assert_allclose(task(inputs), task.head.logits(x), atol=1e-5)


@pytest.mark.parametrize("kind", ["choice", "entity", "marked"])
def test_a_preset_comes_back_with_its_preprocessor(
    kind, tokenizer, entity_preprocessor, tmp_path
):
    task = {
        "choice": lambda: choice_task(tokenizer),
        "entity": lambda: entity_task(entity_preprocessor),
        "marked": lambda: marked_task(tokenizer),
    }[kind]()
    task.save_to_preset(str(tmp_path / "preset"))
    again = type(task).from_preset(str(tmp_path / "preset"))
    before, after = task.preprocessor.get_config(), again.preprocessor.get_config()
    for name in ("tokenizer", "name", "dtype"):
        before.pop(name), after.pop(name)
    assert after == before
    x = {"choice": (TEXTS, CHOICES), "entity": ENTITIES, "marked": MARKED}[kind]
    np.testing.assert_array_equal(
        again.predict(x, verbose=0), task.predict(x, verbose=0)
    )
