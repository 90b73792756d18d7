"""Entities of tags and their scores, against seqeval's."""

import pytest

from deberta_tf.entity_metrics import Entity, entities_of, entity_scores

# Drawn at random, many of them against the rules, and what seqeval 1.2.2 makes of them
# in its default mode: get_entities, precision_score, recall_score and f1_score.
LABELS = """
I-LOC I-LOC B-PER
I-LOC B-LOC I-LOC O I-LOC

I-PER I-LOC B-PER B-PER B-LOC I-LOC I-LOC
B-LOC B-PER B-PER B-PER I-LOC B-LOC O
B-PER
"""
PREDICTIONS = """
I-LOC I-LOC I-PER
I-LOC B-LOC B-LOC O B-LOC

B-PER O B-PER B-PER B-LOC I-PER I-LOC
I-LOC B-PER B-PER B-PER O I-LOC B-PER
I-PER
"""
ENTITIES = """
LOC 0 1, PER 2 2
LOC 0 0, LOC 1 2, LOC 4 4

PER 0 0, LOC 1 1, PER 2 2, PER 3 3, LOC 4 6
LOC 0 0, PER 1 1, PER 2 2, PER 3 3, LOC 4 4, LOC 5 5
PER 0 0
"""
SCORES = {
    "precision": 0.6842105263157895,
    "recall": 0.7647058823529411,
    "f1": 0.7222222222222222,
}


def lines(text):
    return text.strip("\n").split("\n")


def sentences(text):
    return [line.split() for line in lines(text)]


def listed(entities):
    """In seqeval's way: the last word is the entity's."""
    return ", ".join(f"{kind} {start} {end - 1}" for kind, start, end in entities)


def test_entities_are_those_of_seqeval():
    found = [listed(entities_of(tags)) for tags in sentences(LABELS)]
    assert found == lines(ENTITIES)


def test_scores_are_those_of_seqeval():
    found = entity_scores(sentences(PREDICTIONS), sentences(LABELS))
    assert {name: found[name] for name in SCORES} == pytest.approx(SCORES)
    assert found["f1_of"].keys() == {"LOC", "PER"}
    per = entity_scores(
        [[tag if "PER" in tag else "O" for tag in s] for s in sentences(PREDICTIONS)],
        [[tag if "PER" in tag else "O" for tag in s] for s in sentences(LABELS)],
    )
    assert found["f1_of"]["PER"] == pytest.approx(per["f1"])


@pytest.mark.parametrize(
    ("predictions", "labels", "expected"),
    [
        ([["O"]], [["O"]], (0.0, 0.0, 0.0)),
        ([["O"]], [["B-A"]], (0.0, 0.0, 0.0)),
        ([["B-A"]], [["O"]], (0.0, 0.0, 0.0)),
        ([], [], (0.0, 0.0, 0.0)),
        ([["B-A", "I-A"]], [["B-A", "I-A"]], (1.0, 1.0, 1.0)),
        # The span is right, the type is not; and the other way round.
        ([["B-A", "I-A"]], [["B-B", "I-B"]], (0.0, 0.0, 0.0)),
        ([["B-A", "O"]], [["B-A", "I-A"]], (0.0, 0.0, 0.0)),
        # The same in another sentence does not count.
        ([["B-A"], ["O"]], [["O"], ["B-A"]], (0.0, 0.0, 0.0)),
    ],
)
def test_where_little_is_right(predictions, labels, expected):
    found = entity_scores(predictions, labels)
    assert (found["precision"], found["recall"], found["f1"]) == expected


def test_types_may_have_dashes():
    assert entities_of(["B-a-b", "I-a-b"]) == [Entity("a-b", 0, 2)]


def test_mistakes_are_named():
    for tag in ("B", "B-", "X-PER", "", "o"):
        with pytest.raises(ValueError, match=f"Received: '{tag}'"):
            entities_of(["O", tag])
    with pytest.raises(ValueError, match="predictions of 1 sentences, labels of 2"):
        entity_scores([["O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="Sentence 1 has 2 words. Received: 1"):
        entity_scores([["O"], ["O"]], [["O"], ["O", "O"]])
