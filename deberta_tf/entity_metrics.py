"""Scores of named entities: an entity counts when its span and type are right."""

import collections

from deberta_tf.metrics import harmonic_mean

Entity = collections.namedtuple("Entity", "type start end")
"""A type, and the words from `start` to `end`, excluded."""


def entities_of(tags):
    """The entities of a sentence, of tags as in CoNLL-2003.

    Args:
        tags: list of str: "O", or "B-" or "I-" and a type. An entity begins at B-, at
            an I- after O, and at an I- of another type than the tag before.

    Returns:
        list of `Entity`, in their order.

    Raises:
        ValueError: if a tag is neither.
    """
    found, start = [], None
    types = [_parsed(tag) for tag in tags] + [("O", "")]
    for i, (prefix, kind) in enumerate(types):
        goes_on = prefix == "I" and i > 0 and types[i - 1][1] == kind
        if goes_on:
            continue
        if start is not None:
            found.append(Entity(types[start][1], start, i))
        start = None if prefix == "O" else i
    return found


def is_entity_tag(tag):
    """Whether a tag is "O", or "B-" or "I-" and a type."""
    prefix, _, kind = tag.partition("-")
    return tag == "O" or (prefix in ("B", "I") and bool(kind))


def _parsed(tag):
    if not is_entity_tag(tag):
        raise ValueError(f'Tags are "O", "B-type" or "I-type". Received: {tag!r}')
    prefix, _, kind = tag.partition("-")
    return prefix, kind


def entity_scores(predictions, labels):
    """Precision, recall and F1 of the entities of all sentences together.

    Args:
        predictions, labels: lists of sentences, each a list of tags.

    Returns:
        dict of `precision`, `recall`, `f1`, floats in [0, 1], 0.0 where undefined;
        and `f1_of`, dict from type to F1.

    Raises:
        ValueError: if a sentence has not as many predictions as labels.

    Source: conlleval, and seqeval's default mode, which follows it.
    """
    if len(predictions) != len(labels):
        raise ValueError(
            f"Received: predictions of {len(predictions)} sentences, labels of "
            f"{len(labels)}"
        )
    hits, predicted, there = (collections.Counter() for _ in range(3))
    for i, (one, other) in enumerate(zip(predictions, labels, strict=True)):
        if len(one) != len(other):
            raise ValueError(
                f"Sentence {i} has {len(other)} words. Received: {len(one)} predictions"
            )
        found, wanted = set(entities_of(one)), set(entities_of(other))
        for counter, entities in (
            (hits, found & wanted),
            (predicted, found),
            (there, wanted),
        ):
            counter.update(entity.type for entity in entities)
    right, given, wanted = (sum(c.values()) for c in (hits, predicted, there))
    return {
        "precision": right / given if given else 0.0,
        "recall": right / wanted if wanted else 0.0,
        "f1": harmonic_mean(right, given, wanted),
        "f1_of": {
            kind: harmonic_mean(hits[kind], predicted[kind], there[kind])
            for kind in sorted(predicted | there)
        },
    }
