import json

import pytest

from deberta_tf.files import UsageError
from deberta_tf.metrics import accuracy
from tools import baselines, evaluation_data

GOOD = ["a fine film", "fine acting", "so fine", "a fine , fine story"]
BAD = ["a dull film", "dull acting", "so dull", "a dull , dull story"]


def labelled(good, bad):
    return [*good, *bad], ["good"] * len(good) + ["bad"] * len(bad)


def tagged(text):
    """Sentences of "word/tag" pairs, one a line."""
    lines = filter(str.strip, text.splitlines())
    return [[tuple(pair.rsplit("/", 1)) for pair in line.split()] for line in lines]


def test_a_separable_set_of_texts_is_learnt_and_majority_counts_by_hand():
    splits = {
        "train": labelled(GOOD, BAD[:3]),
        "dev": labelled(GOOD[:1], BAD[:3]),
        "test": labelled(["fine"], ["a dull thing"]),
    }
    scores = baselines.score_classifiers(splits, "accuracy")
    assert scores["majority"] == {"dev": {"accuracy": 0.25}, "test": {"accuracy": 0.5}}
    assert scores["linear"]["dev"] == {"accuracy": 1.0}
    assert scores["linear"]["test"] == {"accuracy": 1.0}
    # The first of those that do as well on dev.
    assert scores["linear"]["strength"] == baselines.TEXT_STRENGTHS[0]


TRAIN = """
in/O Paris/B-loc we/O met/O
in/O London/B-loc we/O ate/O
in/O New/B-loc York/I-loc we/O sat/O
"""


def test_entities_are_learnt_from_words_and_their_neighbours():
    splits = {
        "train": tagged(TRAIN * 5),
        "dev": tagged("in/O Paris/B-loc we/O sat/O\nin/O New/B-loc York/I-loc we/O"),
        # A place that was never seen, known by "in" and "we".
        "test": tagged("in/O Lima/B-loc we/O"),
    }
    scores = baselines.score_taggers(splits, "f1")
    # O throughout: 5 of 8 words, and no entity found.
    assert scores["majority"]["dev"] == {
        "accuracy": 5 / 8,
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
    }
    assert scores["linear"]["dev"]["f1"] == 1.0
    assert scores["linear"]["test"]["f1"] == 1.0


def test_a_tag_of_words_that_agree_in_their_ending_is_learnt_without_entities():
    text = "walking/vbg house/nn\nrunning/vbg tree/nn\nsinging/vbg bird/nn\n" * 3
    splits = {"train": tagged(text), "dev": tagged("running/vbg bird/nn")}
    splits["test"] = tagged("talking/vbg")
    scores = baselines.score_taggers(splits, "accuracy")
    assert scores["linear"]["test"] == {"accuracy": 1.0}
    assert scores["majority"]["dev"] == {"accuracy": 0.5}


def test_what_does_best_on_dev_is_taken():
    class Model:
        def fit(self, features, labels):
            self.labels = labels

        def __init__(self, said):
            self.said = said

        def predict(self, features):
            return self.said * len(features)

    models = [(0.1, Model(["b"])), (1.0, Model(["a"])), (10.0, Model(["a"]))]
    features = {"train": [0], "dev": [0, 0], "test": [0]}

    def score(predicted, split):
        return {"accuracy": accuracy(predicted, ["a"] * len(predicted))}

    best = baselines._best(models, features, ["a"], score, "accuracy")
    assert best == {
        "dev": {"accuracy": 1.0},
        "test": {"accuracy": 1.0},
        "strength": 1.0,
    }


def test_scores_of_tags_are_those_of_all_sentences_together():
    sentences = tagged("a/O b/B-x\nc/B-x d/I-x")
    # One entity of two is found whole, and one that is none: the first word.
    said = ["B-x", "B-x", "B-x", "O"]
    assert baselines.tag_scores(said, sentences) == {
        "accuracy": 0.5,
        "precision": pytest.approx(1 / 3),
        "recall": 0.5,
        "f1": pytest.approx(0.4),
    }


def test_contexts_do_not_reach_beyond_a_sentence():
    contexts = baselines.word_contexts(tagged("a/O b/O\nc/O"))
    assert contexts == [("", "a", "b"), ("a", "b", ""), ("", "c", "")]


def test_ngrams_tell_the_ends_of_a_word_the_whole_of_it_and_its_place():
    assert baselines.word_ngrams("ab") == (
        *("<", "a", "b", ">", "<a", "ab", "b>", "<ab", "ab>", "<ab>"),
        "=<ab>",
    )
    assert {"0<a", "1b>", "2=<>"} <= set(baselines.context_ngrams(("a", "b", "")))


def test_the_command_scores_a_set_of_the_evaluations(tmp_path, capsys):
    folder = tmp_path / "data" / "entities"
    folder.mkdir(parents=True)
    for split in evaluation_data.SPLITS:
        text = evaluation_data.to_conll([tagged(TRAIN)])
        (folder / f"{split}.conll").write_text(text)
    output = tmp_path / "scores.json"
    flags = ["--dir", str(tmp_path / "data"), "--output", str(output)]
    baselines.main(["--data", "entities", *flags])
    scores = json.loads(output.read_text())
    assert scores["majority"]["test"]["f1"] == 0.0
    assert scores["linear"]["test"]["f1"] == 1.0
    assert "linear: f1 dev 1.0000, test 1.0000" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--data must be one of .* Received: 'tweets'"):
        baselines.main(["--data", "tweets", *flags])
