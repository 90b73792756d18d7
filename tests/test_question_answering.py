"""Spans that answer: positions, windows, characters, no answer."""

import keras
import numpy as np
import pytest

import deberta_tf
from tests.served_tasks import CONTEXTS, QUESTIONS
from tests.small_models import make_backbone, randomize

ANSWERS = ["captain", "frozen\u00a0peas", "", "song"]
SPANS = [
    (context.rindex(answer), context.rindex(answer) + len(answer)) if answer else (0, 0)
    for context, answer in zip(CONTEXTS, ANSWERS, strict=True)
]


@pytest.fixture(scope="module")
def preprocessor(sentencepiece_proto):
    tokenizer = deberta_tf.DebertaSentencePieceTokenizer(sentencepiece_proto)
    return deberta_tf.DebertaQuestionAnsweringPreprocessor(tokenizer, 32, overlap=8)


def make_task(preprocessor, **kwargs):
    task = deberta_tf.DebertaQuestionAnswering(
        make_backbone(num_layers=1, max_sequence_length=64), preprocessor, **kwargs
    )
    randomize(task)
    return task


def test_labels_are_the_positions_of_the_answers(preprocessor):
    inputs, labels = preprocessor((QUESTIONS, CONTEXTS), y=SPANS)
    assert inputs["token_ids"].shape == (4, 32)
    tokenizer = preprocessor.tokenizer
    texts = [
        tokenizer.detokenize(row[first : last + 1]).numpy().decode()
        for row, (first, last) in zip(
            inputs["token_ids"].numpy().tolist(), labels.numpy(), strict=True
        )
    ]
    assert texts == [answer.replace("\u00a0", " ") for answer in ANSWERS]
    assert labels.numpy()[2].tolist() == [0, 0]


def test_windows_tell_the_characters_of_their_tokens(preprocessor):
    windows = preprocessor.windows(QUESTIONS, CONTEXTS)
    assert windows["example"].numpy().tolist()[:3] == [0, 1, 2]
    covered = {}
    for example, starts, ends in zip(
        windows["example"].numpy(),
        windows["starts"].numpy(),
        windows["ends"].numpy(),
        strict=True,
    ):
        assert np.all((starts < 0) == (ends < 0))
        for start, end in zip(starts, ends, strict=True):
            covered.setdefault(example, set()).update(range(start, end))
    for number, context in enumerate(CONTEXTS):
        words = {i for i, one in enumerate(context) if not one.isspace()}
        assert covered[number] - {-1} == words


def best_by_hand(task, question, context):
    """(score, text, margin) over all windows and pairs of positions."""
    preprocessor = task.preprocessor
    windows = preprocessor.windows([question], [context])
    logits = task.predict(task.inputs_in(windows), verbose=0)
    best, nothing = (-np.inf, ""), np.inf
    starts, ends = windows["starts"].numpy(), windows["ends"].numpy()
    for row in range(len(logits)):
        nothing = min(nothing, logits[row, 0].sum())
        for i in range(32):
            for j in range(i, min(32, i + task.max_answer_length)):
                if starts[row, i] >= 0 and starts[row, j] >= 0:
                    score = logits[row, i, 0] + logits[row, j, 1]
                    text = context[starts[row, i] : ends[row, j]]
                    best = max(best, (score, text), key=lambda one: one[0])
    return *best, nothing - best[0]


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_the_answer_is_the_best_of_all_windows(preprocessor, threshold):
    task = make_task(preprocessor, no_answer_threshold=threshold, max_answer_length=4)
    answers = task.answer(QUESTIONS, CONTEXTS, batch_size=3)
    for question, context, answer in zip(QUESTIONS, CONTEXTS, answers, strict=True):
        assert answer.text == context[answer.start : answer.end]
        if not context:
            assert answer[:3] == ("", 0, 0)
            continue
        score, text, margin = best_by_hand(task, question, context)
        assert answer.score == pytest.approx(score, abs=1e-4)
        assert answer.no_answer_score == pytest.approx(margin, abs=1e-4)
        is_none = threshold is not None and margin > threshold
        assert answer.text == ("" if is_none else text)


def test_lists_of_other_lengths_are_refused(preprocessor):
    task = make_task(preprocessor)
    with pytest.raises(ValueError, match=r"questions \(2,\), contexts \(1,\)"):
        task.answer(QUESTIONS[:2], CONTEXTS[:1])
    with pytest.raises(ValueError, match="batches of equally many strings"):
        task.answer("who?", "the captain")


def test_rows_too_short_for_both_texts_are_refused(preprocessor):
    short = deberta_tf.DebertaQuestionAnsweringPreprocessor(preprocessor.tokenizer, 4)
    with pytest.raises(ValueError, match="sequence_length=4"):
        short.windows(QUESTIONS, CONTEXTS)


def test_it_learns_spans(sentences, preprocessor):
    texts = [sentence for sentence in sentences if "captain" in sentence][:32]
    spans = [(text.index("captain"), text.index("captain") + 7) for text in texts]
    questions = ["who?"] * len(texts)
    task = make_task(preprocessor)
    task.compile(keras.optimizers.Adam(2e-2))
    task.fit((questions, texts), spans, batch_size=8, epochs=8, verbose=0)
    _, accuracy = task.evaluate((questions, texts), np.array(spans), verbose=0)
    assert accuracy > 0.95
    assert task.answer(questions[:2], texts[:2])[0].text == "captain"


def test_the_loss_is_the_mean_of_both_cross_entropies():
    logits = np.random.default_rng(0).normal(size=(3, 5, 2)).astype("float32")
    labels = np.array([[1, 3], [0, 0], [4, 4]])
    log_shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -np.mean([log_shares[i, labels[i], [0, 1]] for i in range(3)])
    task = deberta_tf.DebertaQuestionAnswering(make_backbone(num_layers=1))
    np.testing.assert_allclose(task.loss(labels, logits), expected, rtol=1e-5)


def test_a_preset_keeps_threshold_and_overlap(preprocessor, tmp_path):
    task = make_task(preprocessor, no_answer_threshold=0.25, max_answer_length=7)
    task.save_to_preset(str(tmp_path / "preset"))
    again = deberta_tf.DebertaQuestionAnswering.from_preset(str(tmp_path / "preset"))
    assert (again.no_answer_threshold, again.max_answer_length) == (0.25, 7)
    assert again.preprocessor.overlap == 8
    assert again.answer(QUESTIONS, CONTEXTS) == task.answer(QUESTIONS, CONTEXTS)
