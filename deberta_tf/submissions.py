"""Predictions as the servers of GLUE and SuperGLUE and the scorer of SQuAD take them.

A prediction is a dict, one line of a run's `predictions-<split>.jsonl`:

    id: what the data set calls the example. An int from 0; for SQuAD a str; for MultiRC
        {"paragraph", "question", "answer"}; for ReCoRD {"passage", "query"}, or the
        query alone.
    prediction: name of a class; float of a regression; int of a choice, from 0; text of
        an answer, "" for none.
    no_answer_score: of SQuAD 2.0, float, larger where no answer is likely; optional.

Source: names of files, nesting and spelling of labels as in jiant, by the authors of
both servers (`benchmarks.py`, every `super_glue_format_preds`); evaluate-v2.0.py.
"""

import json
import math


def _as_they_are(*names):
    return {name: name for name in names}


_THREE_WAY = _as_they_are("entailment", "neutral", "contradiction")
_TWO_WAY = _as_they_are("entailment", "not_entailment")
_TRUTH = _as_they_are("false", "true")

# {task: (name of the file, {class in lower case: what the server calls it})}. By name:
# TFDS and the official files count classes in different orders.
_GLUE = {
    "cola": ("CoLA", {"unacceptable": 0, "acceptable": 1}),
    "sst2": ("SST-2", {"negative": 0, "positive": 1}),
    "mrpc": ("MRPC", {"not_equivalent": 0, "equivalent": 1}),
    "qqp": ("QQP", {"not_duplicate": 0, "duplicate": 1}),
    "stsb": ("STS-B", None),
    "mnli": ("MNLI-m", _THREE_WAY),
    "qnli": ("QNLI", _TWO_WAY),
    "rte": ("RTE", _TWO_WAY),
    "wnli": ("WNLI", {"not_entailment": 0, "entailment": 1}),
    "ax": ("AX", _THREE_WAY),
}
_SUPERGLUE = {
    "boolq": ("BoolQ", _TRUTH),
    "cb": ("CB", _THREE_WAY),
    "copa": ("COPA", {"choice1": 0, "choice2": 1}),
    "multirc": ("MultiRC", {"false": 0, "true": 1}),
    "record": ("ReCoRD", None),
    "superglue_rte": ("RTE", _TWO_WAY),
    "wic": ("WiC", _TRUTH),
    # Unlike those of BoolQ and WiC, in capitals.
    "wsc": ("WSC", {"false": "False", "true": "True"}),
    "axb": ("AX-b", _TWO_WAY),
    "axg": ("AX-g", _TWO_WAY),
}
_SQUAD = {"squad1": "SQuAD-1.1", "squad2": "SQuAD-2.0"}
# Their test sets come with labels, or have no server whose format is known.
_WITHOUT = ("race", "swag", "conll2003", "xnli")

TASKS = (*_GLUE, *_SUPERGLUE, *_SQUAD, *_WITHOUT)


def submission(task, split, predictions):
    """The files to hand in.

    GLUE and SuperGLUE score their test sets only: `split` "test", and for MNLI also
    "test_mismatched". SQuAD's scorer takes any split; of SQuAD 2.0 it takes the
    predictions, and with `--na-prob-file` the no-answer scores. Its
    `--na-prob-thresh` must then be the threshold that the predictions were made with:
    its default of 1 is one for probabilities.

    Args:
        task: str, one of `TASKS`.
        split: str.
        predictions: list of dict, in any order.

    Returns:
        dict from file name to text; empty where nothing takes such predictions.

    Raises:
        ValueError: if the task is unknown, ids are missing, doubled or of another kind,
            or a prediction is none of the task's.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}. Received: {task!r}")
    if task in _SQUAD:
        return _squad_files(task, split, predictions)
    if task in _WITHOUT:
        return {}
    name, classes = (_GLUE | _SUPERGLUE)[task]
    if (task, split) == ("mnli", "test_mismatched"):
        name = "MNLI-mm"
    elif split != "test":
        return {}
    if task in _GLUE:
        return {f"{name}.tsv": _glue_text(task, classes, predictions)}
    lines = _superglue_lines(task, classes, predictions)
    return {f"{name}.jsonl": "".join(json.dumps(line) + "\n" for line in lines)}


def _glue_text(task, classes, predictions):
    rows = ["index\tprediction"]
    for index, prediction in _in_order(task, predictions):
        if classes is None:
            label = f"{_similarity(task, index, prediction):.6f}"
        else:
            label = _label(task, classes, index, prediction)
        rows.append(f"{index}\t{label}")
    return "\n".join(rows) + "\n"


def _similarity(task, index, prediction):
    """A score that is in STS-B's range, from 0 to 5."""
    is_number = isinstance(prediction, int | float) and not isinstance(prediction, bool)
    if not is_number or not math.isfinite(prediction):
        _refuse(task, index, prediction, "a finite number")
    return min(max(float(prediction), 0.0), 5.0)


def _superglue_lines(task, classes, predictions):
    if task == "multirc":
        return _multirc_lines(classes, predictions)
    if task == "record":
        return _record_lines(predictions)
    return [
        {"idx": index, "label": _label(task, classes, index, prediction)}
        for index, prediction in _in_order(task, predictions)
    ]


def _record_lines(predictions):
    found = _by_id("record", predictions, _query)
    for query, prediction in found.items():
        if not isinstance(prediction, str):
            _refuse("record", query, prediction, "text")
    return [{"idx": query, "label": found[query]} for query in sorted(found)]


def _query(name):
    return _index(name["query"] if isinstance(name, dict) else name)


def _multirc_lines(classes, predictions):
    """One paragraph a line: questions nested in it, answers nested in them."""
    found = _by_id("multirc", predictions, _answer)
    paragraphs = {}
    for place in sorted(found):
        paragraph, question, answer = place
        label = _label("multirc", classes, place, found[place])
        questions = paragraphs.setdefault(paragraph, {})
        questions.setdefault(question, []).append({"idx": answer, "label": label})
    return [
        {
            "idx": paragraph,
            "passage": {
                "questions": [
                    {"idx": question, "answers": answers}
                    for question, answers in questions.items()
                ]
            },
        }
        for paragraph, questions in paragraphs.items()
    ]


def _answer(name):
    return tuple(_index(name[part]) for part in ("paragraph", "question", "answer"))


def _squad_files(task, split, predictions):
    answers = _by_id(task, predictions, _question)
    for question, text in answers.items():
        if not isinstance(text, str):
            _refuse(task, question, text, 'text, "" for no answer')
    files = {f"{_SQUAD[task]}-{split}.json": answers}
    scores = {
        one["id"]: one["no_answer_score"]
        for one in predictions
        if "no_answer_score" in one
    }
    if task == "squad2" and scores:
        without = [question for question in answers if question not in scores]
        if without:
            raise ValueError(
                f"{task}: id {without[0]!r} has no no_answer_score, and others have one"
            )
        files[f"{_SQUAD[task]}-{split}-na-prob.json"] = scores
    # ASCII alone: the scorer reads it in whatever encoding its machine has.
    return {name: json.dumps(content) + "\n" for name, content in files.items()}


def _question(name):
    if not isinstance(name, str):
        raise TypeError
    return name


def _in_order(task, predictions):
    """(index, prediction), from index 0 on.

    Raises:
        ValueError: if an index below the highest is missing.
    """
    found = _by_id(task, predictions, _index)
    missing = [index for index in range(max(found) + 1) if index not in found]
    if missing:
        raise ValueError(
            f"{task}: the ids must be 0 to {max(found)}, each once. There is none for "
            f"{len(missing)} of them, the first {missing[0]}"
        )
    return sorted(found.items())


def _index(name):
    if not isinstance(name, int) or isinstance(name, bool) or name < 0:
        raise TypeError
    return name


def _by_id(task, predictions, read_id):
    """{what `read_id` makes of the id: prediction}."""
    found = {}
    for one in predictions:
        try:
            name = read_id(one["id"])
        except (KeyError, TypeError):
            raise ValueError(
                f"{task}: a prediction has no id of this task's. Found: {one!r:.80}"
            ) from None
        if name in found:
            raise ValueError(f"{task}: id {one['id']!r} is there more than once")
        found[name] = one.get("prediction")
    if not found:
        raise ValueError(f"{task}: there are no predictions")
    return found


def _label(task, classes, name, prediction):
    """What the server calls a class; its own spelling is taken too, in any case."""
    spellings = {str(label).lower(): label for label in classes.values()} | classes
    label = spellings.get(str(prediction).lower())
    if label is None:
        _refuse(task, name, prediction, f"one of {', '.join(spellings)}")
    return label


def _refuse(task, name, prediction, wanted):
    raise ValueError(
        f"{task}: the prediction of id {name!r} must be {wanted}. "
        f"Found: {prediction!r:.80}"
    )
