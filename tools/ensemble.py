"""Averages the predictions of several runs of a task.

    python -m tools.ensemble --task mnli --split test --output averaged \\
        --predictions run1/predictions-test.jsonl run2/predictions-test.jsonl

The output folder gets `predictions-<split>.jsonl` and, where a server or scorer takes
the task's predictions, the file for it (`deberta_tf/submissions.py`). Of a single run
only that file is new.
"""

import json
import math
import os

from deberta_tf import files
from deberta_tf.submissions import TASKS, submission


def main(argv=None):
    options = _parse(argv)
    name = f"predictions-{options.split}.jsonl"
    _refuse_overwriting(os.path.join(options.output, name), options.predictions)
    runs = read_runs(options.predictions)
    averaged = average(options.task, runs, options.no_answer_threshold)
    handed_in = submission(options.task, options.split, averaged)
    os.makedirs(options.output, exist_ok=True)
    files.write_json_lines(os.path.join(options.output, name), averaged)
    for other, text in handed_in.items():
        files.atomic_write(os.path.join(options.output, other), text)
    written = ", ".join([name, *handed_in])
    print(f"{len(averaged):,} predictions of {len(runs)} runs: {written}")
    if not handed_in:
        print(f"no server takes {options.task!r} of the split {options.split!r}")


def _parse(argv):
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", required=True, choices=TASKS, metavar="TASK")
    parser.add_argument(
        "--split", required=True, help="what was predicted: test, test_mismatched, dev"
    )
    parser.add_argument(
        "--predictions",
        required=True,
        nargs="+",
        metavar="FILE",
        help="predictions-<split>.jsonl of each run",
    )
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument(
        "--no_answer_threshold",
        type=float,
        help="squad2: a question whose mean no_answer_score is above it has no answer "
        "(0)",
    )
    options = parser.parse_args(argv)
    if options.no_answer_threshold is not None and options.task != "squad2":
        raise files.UsageError("--no_answer_threshold is nothing without --task squad2")
    options.no_answer_threshold = options.no_answer_threshold or 0.0
    return options


def _refuse_overwriting(path, inputs):
    for other in inputs:
        if os.path.realpath(other) == os.path.realpath(path):
            raise files.UsageError(
                f"{other} would be overwritten: name another --output folder"
            )


def read_runs(paths):
    """The predictions of each file, in the order of the first.

    Returns:
        list, one a file, of lists of dict; the same ids at the same places.

    Raises:
        UsageError: if a file is missing, empty or holds a line that is no prediction,
            or the files do not have the same ids, each once.
    """
    runs = [_read_run(path) for path in paths]
    first = runs[0]
    for path, run in zip(paths, runs, strict=True):
        for one, other in ((first, run), (run, first)):
            stray = next((name for name in one if name not in other), None)
            if stray is not None:
                has, lacks = (paths[0], path) if one is first else (path, paths[0])
                raise files.UsageError(f"{has} has the id {stray}, which {lacks} lacks")
    return [[run[name] for name in first] for run in runs]


def _read_run(path):
    """{id as JSON: prediction}."""
    if not os.path.isfile(path):
        raise files.UsageError(f"no file {path!r}")
    lines = files.read_json_lines(path, _check, 'a prediction: "id", "prediction", …')
    if not lines:
        raise files.UsageError(f"{path} is empty")
    found = {}
    for line in lines:
        name = _name(line)
        if name in found:
            raise files.UsageError(f"{path} has the id {name} more than once")
        found[name] = line
    return found


def _name(line):
    return json.dumps(line["id"], sort_keys=True, ensure_ascii=False)


def _check(line):
    """Raises where it is no prediction."""
    _name(line)
    prediction, scores = line["prediction"], line.get("scores")
    numbers = [line.get("no_answer_score", 0.0)]
    if scores is None:
        numbers.append(prediction)
    elif isinstance(scores, list):
        for tag, word in zip(prediction, scores, strict=True):
            numbers += [*dict.values(word), word[tag]]
    else:
        numbers += dict.values(scores)
        if isinstance(prediction, int):
            # A choice, and a key a text, as all keys of JSON are.
            numbers += [int(key) for key in scores]
    # A text without a candidate has no answer.
    is_empty = scores == {} and prediction != ""
    if is_empty or not all(map(math.isfinite, numbers)):
        raise ValueError


def average(task, runs, no_answer_threshold=0.0):
    """One prediction an example, of those of several runs.

    Scores are averaged candidate by candidate, one that a run lacks counting 0, and the
    best is predicted; of equal ones the first that a run names. Tags: word by word.
    Regressions: the mean. What else a prediction holds is the first run's.

    Args:
        task: str, one of `submissions.TASKS`.
        runs: list of lists of dict, as `read_runs` returns them.
        no_answer_threshold: float. A question of squad2 whose mean `no_answer_score` is
            above it has no answer, others have one; without that score, "" is a
            candidate like any.

    Returns:
        list of dict.

    Raises:
        UsageError: if the runs' predictions of an example are of different kinds.
    """
    averaged = []
    for same in zip(*runs, strict=True):
        _check_kinds(same)
        found = _average_one(task, same)
        if "no_answer_score" in same[0]:
            found["no_answer_score"] = _mean([one["no_answer_score"] for one in same])
            if task == "squad2" and found["no_answer_score"] > no_answer_threshold:
                found["prediction"] = ""
        averaged.append({**same[0], **found})
    return averaged


def _check_kinds(same):
    kinds = [(_kind(one), "no_answer_score" in one) for one in same]
    if len(set(kinds)) > 1:
        raise files.UsageError(
            f"the runs have different kinds of predictions for id {_name(same[0])}; "
            f"scores: {', '.join(kind for kind, _ in kinds)}"
        )


def _kind(prediction):
    scores = prediction.get("scores")
    if isinstance(scores, list):
        return f"{len(scores)} words"
    return "none" if scores is None else "of candidates"


def _average_one(task, same):
    """What a list of predictions of one example becomes."""
    scores = [one.get("scores") for one in same]
    if scores[0] is None:
        return {"prediction": _mean([one["prediction"] for one in same])}
    if isinstance(scores[0], list):
        words = [_mean_scores(list(word)) for word in zip(*scores, strict=True)]
        return {"prediction": [_best(word) for word in words], "scores": words}
    means = _mean_scores(scores)
    candidates = means
    if task == "squad1" or "no_answer_score" in same[0]:
        # Whether there is an answer is not decided by the candidates.
        candidates = {text: mean for text, mean in means.items() if text} or means
    best = _best(candidates)
    if isinstance(same[0]["prediction"], int):
        # A choice: JSON has no other keys than texts.
        best = int(best)
    return {"prediction": best, "scores": means}


def _mean_scores(scores):
    names = dict.fromkeys(name for one in scores for name in one)
    return {name: _mean([one.get(name, 0.0) for one in scores]) for name in names}


def _mean(values):
    # `fsum` rounds once: ties stay ties in any order of the runs.
    return math.fsum(values) / len(values)


def _best(scores):
    return max(scores, key=scores.get, default="")


if __name__ == "__main__":
    files.run_command(main)
