"""deberta_tf/submissions.py: the files that servers and scorers take."""

import csv
import json

import pytest

from deberta_tf.submissions import TASKS, submission


def predicted(*predictions):
    return [{"id": i, "prediction": one} for i, one in enumerate(predictions)]


def the_only_file(task, predictions, split="test"):
    ((name, text),) = submission(task, split, predictions).items()
    return name, text


@pytest.mark.parametrize(
    ("task", "name", "classes", "labels"),
    [
        ("cola", "CoLA", ["unacceptable", "acceptable"], ["0", "1"]),
        ("sst2", "SST-2", ["negative", "positive"], ["0", "1"]),
        ("mrpc", "MRPC", ["not_equivalent", "equivalent"], ["0", "1"]),
        ("qqp", "QQP", ["not_duplicate", "duplicate"], ["0", "1"]),
        ("wnli", "WNLI", ["not_entailment", "entailment"], ["0", "1"]),
        ("qnli", "QNLI", ["entailment", "not_entailment"], None),
        ("rte", "RTE", ["entailment", "not_entailment"], None),
        ("mnli", "MNLI-m", ["contradiction", "neutral", "entailment"], None),
        ("ax", "AX", ["contradiction", "neutral", "entailment"], None),
    ],
)
def test_glue_takes_a_table_of_its_own_labels(task, name, classes, labels):
    file_name, text = the_only_file(task, predicted(*classes))
    assert file_name == f"{name}.tsv"
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    assert [row["index"] for row in rows] == [str(i) for i in range(len(classes))]
    assert [row["prediction"] for row in rows] == (labels or classes)


@pytest.mark.parametrize(
    ("task", "name", "predictions", "labels"),
    [
        ("boolq", "BoolQ", ["False", "True"], ["false", "true"]),
        ("wic", "WiC", ["False", "True"], ["false", "true"]),
        ("wsc", "WSC", ["False", "True"], ["False", "True"]),
        ("cb", "CB", ["neutral", "contradiction"], ["neutral", "contradiction"]),
        ("copa", "COPA", [1, 0], [1, 0]),
        ("superglue_rte", "RTE", ["entailment"], ["entailment"]),
        ("axb", "AX-b", ["not_entailment"], ["not_entailment"]),
        ("axg", "AX-g", ["not_entailment"], ["not_entailment"]),
        ("record", "ReCoRD", ["Zoë", "U.S."], ["Zoë", "U.S."]),
    ],
)
def test_superglue_takes_an_object_a_line(task, name, predictions, labels):
    file_name, text = the_only_file(task, predicted(*predictions))
    assert file_name == f"{name}.jsonl"
    assert [json.loads(line) for line in text.splitlines()] == [
        {"idx": i, "label": label} for i, label in enumerate(labels)
    ]


def test_the_whole_file_of_a_classification():
    text = "index\tprediction\n0\tneutral\n1\tentailment\n"
    predictions = predicted("neutral", "entailment")
    assert submission("mnli", "test", predictions) == {"MNLI-m.tsv": text}
    assert submission("mnli", "test_mismatched", predictions) == {"MNLI-mm.tsv": text}


def test_scores_of_similarity_stay_between_0_and_5():
    _, text = the_only_file("stsb", predicted(-0.2, 3.21875, 5.4))
    assert text == "index\tprediction\n0\t0.000000\n1\t3.218750\n2\t5.000000\n"


def test_rows_stand_in_the_order_of_their_ids():
    _, text = the_only_file("rte", predicted("entailment", "not_entailment")[::-1])
    assert text.splitlines()[1:] == ["0\tentailment", "1\tnot_entailment"]


def test_labels_spelled_as_the_official_files_do_are_taken():
    assert the_only_file("cola", predicted("0", "1"))[1].split()[2:] == list("0011")
    lines = the_only_file("wsc", predicted("true", "false"))[1].splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["True", "False"]


def test_answers_of_multirc_are_nested_in_questions_and_paragraphs():
    judged = {(1, 2, 5): "True", (0, 0, 1): "False", (0, 1, 2): "1", (0, 0, 0): "True"}
    predictions = [
        {"id": {"paragraph": p, "question": q, "answer": a}, "prediction": label}
        for (p, q, a), label in judged.items()
    ]
    name, text = the_only_file("multirc", predictions)
    assert name == "MultiRC.jsonl"
    first = [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}]
    assert [json.loads(line) for line in text.splitlines()] == [
        {
            "idx": 0,
            "passage": {
                "questions": [
                    {"idx": 0, "answers": first},
                    {"idx": 1, "answers": [{"idx": 2, "label": 1}]},
                ]
            },
        },
        {
            "idx": 1,
            "passage": {"questions": [{"idx": 2, "answers": [{"idx": 5, "label": 1}]}]},
        },
    ]


def test_queries_of_record_are_named_within_their_passage():
    predictions = [
        {"id": {"passage": 0, "query": 7}, "prediction": "Oslo"},
        {"id": {"passage": 2, "query": 3}, "prediction": "Bergen"},
    ]
    _, text = the_only_file("record", predictions)
    assert [json.loads(line) for line in text.splitlines()] == [
        {"idx": 3, "label": "Bergen"},
        {"idx": 7, "label": "Oslo"},
    ]


def official_scorer_reads(predictions_file, scores_file, questions):
    """What evaluate-v2.0.py looks up: texts and scores by the id of a question."""
    with open(predictions_file, encoding="ascii") as file:
        texts = json.load(file)
    with open(scores_file, encoding="ascii") as file:
        scores = json.load(file)
    return {q: (texts[q], scores[q] > 1.0) for q in questions}


def test_the_scorer_of_squad_finds_every_answer_and_score(tmp_path):
    predictions = [
        {"id": "56be", "prediction": "Café de Flore", "no_answer_score": -2.5},
        {"id": "5ad3", "prediction": "", "no_answer_score": 4.0},
    ]
    made = submission("squad2", "dev", predictions)
    assert set(made) == {"SQuAD-2.0-dev.json", "SQuAD-2.0-dev-na-prob.json"}
    for name, text in made.items():
        (tmp_path / name).write_text(text, encoding="ascii")
    paths = [tmp_path / name for name in sorted(made, key=len)]
    assert official_scorer_reads(*paths, ["56be", "5ad3"]) == {
        "56be": ("Café de Flore", False),
        "5ad3": ("", True),
    }


def test_squad_1_has_answers_alone():
    predictions = [{"id": "56be", "prediction": "Rome", "no_answer_score": -2.5}]
    name, text = the_only_file("squad1", predictions, split="dev")
    assert (name, json.loads(text)) == ("SQuAD-1.1-dev.json", {"56be": "Rome"})


def test_what_no_server_takes_makes_no_files():
    assert submission("race", "test", predicted(2)) == {}
    assert submission("rte", "dev", predicted("entailment")) == {}
    assert submission("qqp", "test_mismatched", predicted("duplicate")) == {}


def test_every_task_that_has_files_refuses_to_hand_in_nothing():
    without = ("race", "swag", "conll2003", "xnli")
    assert set(without) < set(TASKS)
    for task in set(TASKS) - set(without):
        with pytest.raises(ValueError, match=f"{task}: there are no predictions"):
            submission(task, "test", [])


@pytest.mark.parametrize(
    ("task", "predictions", "message"),
    [
        ("mnlii", [], "task must be one of cola.*Received: 'mnlii'"),
        (
            "rte",
            [{"id": i, "prediction": "entailment"} for i in (0, 3, 5)],
            "rte: the ids must be 0 to 5, each once. There is none for 3 of them, "
            "the first 1",
        ),
        (
            "rte",
            2 * predicted("entailment"),
            "rte: id 0 is there more than once",
        ),
        ("rte", [{"id": "0", "prediction": "entailment"}], "no id of this task's"),
        ("rte", [{"row": 1, "prediction": "entailment"}], "no id of this task's"),
        ("multirc", predicted("True"), "no id of this task's"),
        ("squad2", predicted("Rome"), "no id of this task's"),
        (
            "mnli",
            predicted("neutral", "maybe"),
            "mnli: the prediction of id 1 must be one of entailment, neutral, "
            "contradiction. Found: 'maybe'",
        ),
        ("copa", predicted(2), "must be one of 0, 1, choice1, choice2. Found: 2"),
        ("stsb", predicted(float("nan")), "must be a finite number. Found: nan"),
        ("record", predicted(None), "must be text. Found: None"),
        ("squad1", [{"id": "a", "prediction": 3}], "must be text"),
        (
            "squad2",
            [
                {"id": "a", "prediction": "", "no_answer_score": 1.0},
                {"id": "b", "prediction": ""},
            ],
            "squad2: id 'b' has no no_answer_score, and others have one",
        ),
    ],
)
def test_predictions_that_do_not_fit_are_refused(task, predictions, message):
    with pytest.raises(ValueError, match=message):
        submission(task, "test", predictions)
