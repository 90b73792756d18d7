import re

import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.attention_terms import attention_terms
from deberta_tf.entity_metrics import entities_of
from deberta_tf.packing import pack_strings
from tests.playground_tasks import INPUTS, NAMES, SEQUENCE_LENGTH, ask
from tools.playground_answers import view_of

pytest_plugins = "tests.playground_fixtures"
LONG = "nobody remembers the theory of knots. " * 9


def answer(clients, name):
    return ask(clients[name], inputs=INPUTS[name])


def by_label(found):
    return {item["label"]: item["score"] for item in found["items"]}


def assert_scores(found, labels, scores):
    assert found["kind"] == "scores"
    assert [item["label"] for item in found["items"]] == labels
    np.testing.assert_allclose([*by_label(found).values()], scores, atol=1e-5)


@pytest.mark.parametrize("name", INPUTS)
def test_a_model_tells_its_fields_and_examples_that_it_answers(clients, name):
    model = clients[name].get("/api/model").json
    assert (model["num_layers"], model["num_heads"]) == (2, 2)
    assert model["terms"] == ["c2c", "c2p", "p2c"]
    names = {field["name"] for field in model["fields"]}
    assert INPUTS[name].keys() <= names
    assert model["examples"]
    for example in model["examples"]:
        assert ask(clients[name], inputs=example)["kind"]


def test_classes_have_the_scores_that_the_task_predicts(tasks, clients):
    expected = tf.nn.softmax(
        tasks["classifier"].predict([INPUTS["classifier"]["text"]], verbose=0)
    )
    assert_scores(answer(clients, "classifier"), NAMES, expected[0])


def test_a_pair_is_scored_as_a_pair(tasks, clients):
    given = INPUTS["regression"]
    pair = [given["text"]], [given["text_pair"]]
    expected = tasks["regression"].predict(pair, verbose=0)
    found = answer(clients, "regression")
    assert found["kind"] == "number"
    assert found["score"] == pytest.approx(float(expected[0, 0]), abs=1e-5)


def test_words_have_their_tags_and_make_entities(tasks, clients):
    words = INPUTS["tagger"]["text"].split()
    found = answer(clients, "tagger")
    (tags,) = tasks["tagger"].tag([words])
    assert [word["text"] for word in found["words"]] == words
    assert [word["label"] for word in found["words"]] == tags
    scores = [word["score"] for word in found["words"]]
    assert [
        (one["type"], one["start"], one["end"]) for one in found["entities"]
    ] == entities_of(tags)
    for one in found["entities"]:
        assert one["score"] == min(scores[one["start"] : one["end"]])


def test_an_answer_is_a_part_of_its_context(tasks, clients):
    given = INPUTS["answers"]
    (expected,) = tasks["answers"].answer([given["question"]], [given["context"]])
    found = answer(clients, "answers")
    before, text, after = found["parts"]
    assert before + text + after == given["context"]
    assert (text, len(before)) == (expected.text, expected.start)
    assert text
    assert found["score"] == pytest.approx(expected.score, abs=1e-4)
    assert found["no_answer_threshold"] is None
    (notice,) = found["notices"]
    assert re.search(r"read in \d overlapping windows", notice)


def test_a_question_may_have_no_answer(tasks, clients, monkeypatch):
    monkeypatch.setattr(tasks["answers"], "no_answer_threshold", -1e9)
    found = answer(clients, "answers")
    assert found["parts"] == ["", "", INPUTS["answers"]["context"]]
    assert found["no_answer_threshold"] == -1e9


def test_choices_have_the_scores_that_the_task_predicts(tasks, clients):
    given = INPUTS["choices"]
    x = [given["text"]], [given["choices"]]
    expected = tf.nn.softmax(tasks["choices"].predict(x, verbose=0))
    assert_scores(answer(clients, "choices"), given["choices"], expected[0])


def test_masks_have_the_candidates_of_fill_mask(tasks, clients):
    text = INPUTS["masked_lm"]["text"]
    found = answer(clients, "masked_lm")
    assert "[MASK]".join(found["parts"]) == text
    expected = tasks["masked_lm"].fill_mask(text, top_k=10)
    assert [[item["label"] for item in one] for one in found["masks"]] == [
        [label for label, _ in one] for one in expected
    ]
    np.testing.assert_allclose(
        [[item["score"] for item in one] for one in found["masks"]],
        [[score for _, score in one] for one in expected],
        rtol=1e-5,
    )


def test_an_entity_has_the_score_of_its_best_mention(tasks, clients):
    given = INPUTS["entities"]
    passage, entities = given["passage"], given["entities"]
    spans = [
        (match.start(), match.end())
        for entity in entities
        for match in re.finditer(entity, passage)
    ]
    assert len(spans) == 4
    starts, ends = zip(*spans, strict=True)
    x = {"passage": [passage], "query": [given["query"]]}
    x |= {"entity_starts": [starts], "entity_ends": [ends]}
    one, two, three, four = np.exp(tasks["entities"].score_entities(x))[0, :4]
    expected = [one, max(two, three), four]
    assert_scores(answer(clients, "entities"), entities, expected)


@pytest.mark.parametrize("text_pair", [None, "the [cat] watched"])
def test_marked_spans_are_classified(tasks, clients, text_pair):
    inputs = {"text": "a grey [cat] sold"}
    x = {"text": ["a grey cat sold"], "span_starts": [[7, 4]], "span_ends": [[10, 7]]}
    if text_pair:
        inputs["text_pair"], x["text_pair"] = text_pair, ["the cat watched"]
    else:
        inputs["text"] = "a grey [cat] [sold]"
        x["span_starts"], x["span_ends"] = [[7, 11]], [[10, 15]]
    expected = tf.nn.softmax(tasks["spans"].predict(x, verbose=0))
    found = ask(clients["spans"], inputs=inputs)
    assert_scores(found, ["other", "same"], expected[0])


def test_each_token_has_its_probability_of_being_replaced(tasks, clients):
    task = tasks["replaced"]
    rows = pack_strings(task.preprocessor.tokenizer, ([INPUTS["replaced"]["text"]],))
    expected = tf.sigmoid(task.discriminate(rows))[0, 1:-1]
    found = answer(clients, "replaced")
    assert found["kind"] == "tokens"
    scores = [token["score"] for token in found["tokens"]]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert found["tokens"][0]["label"] == "\u2581the"


@pytest.mark.parametrize("name", INPUTS)
def test_the_attention_is_that_of_the_rows_that_the_model_reads(tasks, clients, name):
    body = {"inputs": INPUTS[name], "layer": 1, "head": 1}
    found = ask(clients[name], "attention", **body)
    rows, names = view_of(tasks[name]).rows(**INPUTS[name])
    assert found["rows"] == names
    backbone = tasks[name].backbone
    inputs = {key: tf.constant(rows[key]) for key in backbone.input}
    expected = attention_terms(backbone, inputs)[1]
    length = len(found["tokens"])
    assert length == found["num_tokens"] == int(np.sum(rows["padding_mask"][0]))
    assert (found["tokens"][0], found["tokens"][-1]) == ("[CLS]", "[SEP]")
    assert found["terms"].keys() == expected.keys()
    for term, numbers in found["terms"].items():
        np.testing.assert_allclose(
            numbers, expected[term][0, 1, :length, :length], atol=1e-5
        )


@pytest.mark.parametrize("name", ["answers", "choices"])
def test_each_row_has_its_own_attention(clients, name):
    first, second = (
        ask(clients[name], "attention", inputs=INPUTS[name], row=row) for row in (0, 1)
    )
    assert len(first["rows"]) > 1
    assert first["tokens"] != second["tokens"]


def test_the_attention_of_a_long_row_is_that_of_its_beginning(clients, monkeypatch):
    body = {"inputs": INPUTS["classifier"]}
    whole = ask(clients["classifier"], "attention", **body)
    monkeypatch.setattr("tools.playground_attention.MAX_TOKENS", 4)
    part = ask(clients["classifier"], "attention", **body)
    assert part["num_tokens"] == whole["num_tokens"] > 4
    assert part["tokens"] == whole["tokens"][:4]
    expected = [row[:4] for row in whole["terms"]["c2p"][:4]]
    assert part["terms"]["c2p"] == expected


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("classifier", {"text": LONG}),
        ("classifier", {"text": "nobody", "text_pair": LONG}),
        ("tagger", {"text": LONG}),
        ("choices", {"text": "nobody", "choices": ["nobody", LONG]}),
        ("spans", {"text": "[nobody] [sold] " + LONG}),
        ("replaced", {"text": LONG}),
    ],
)
def test_what_is_cut_off_is_said(clients, name, inputs):
    (notice,) = ask(clients[name], inputs=inputs)["notices"]
    assert f"more than the {SEQUENCE_LENGTH} that the model reads" in notice
    row = ask(clients[name], "attention", inputs=inputs, row=0)
    assert row["num_tokens"] <= SEQUENCE_LENGTH


def test_a_word_that_is_cut_off_has_no_tag(clients):
    words = ask(clients["tagger"], inputs={"text": LONG})["words"]
    assert words[0]["label"]
    assert (words[-1]["label"], words[-1]["score"]) == ("", 0.0)


def test_a_question_that_is_cut_is_said(clients):
    notices = ask(clients["answers"], inputs={"question": LONG, "context": "Oslo."})[
        "notices"
    ]
    assert "of which the model reads the first 14" in notices[0]
