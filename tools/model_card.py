"""The model card: what a served model is, was trained on, scores, and does not do."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import shlex
import tomllib

import tensorflow as tf

from deberta_tf import files
from deberta_tf.packing import LENGTH_STEP
from tools import deployment, warm_up

NOT_STATED = "not stated"
# The tests hold served graphs to the operations of these.
OLDEST_SERVER = "TF Serving 2.12 (TensorFlow 2.12, TF-Text 2.12)"
# As `trainers.finetune` leaves them: the first inside a preset, the others beside it.
_SCORES, _RESULTS, _CONFIG = "scores.json", "results.json", "config.json"
_PACKAGES = ("tensorflow", "keras", "keras-hub", "tensorflow-text")
_TRAINED = (
    ("task", "data set"),
    ("train", "examples to train on"),
    ("dev", "examples that chose the weights"),
    ("test", "examples to test on"),
    ("text_columns", "columns of the text"),
    ("label_column", "column of the label"),
    ("preset", "began as"),
    ("epochs", "epochs"),
    ("batch_size", "batch size"),
    ("learning_rate", "learning rate"),
    ("sequence_length", "tokens of a row in training"),
    ("seed", "seed"),
)
_IN_WORDS = {
    "DebertaTextClassifier": "classifies a text, or a pair of texts",
    "DebertaTokenClassifier": "classifies each word of a sentence",
    "DebertaQuestionAnswering": "finds the span of a context that answers a question",
    "DebertaMultipleChoice": "chooses one of several texts",
    "DebertaEntityScorer": "scores the entities of a passage as answers to a query",
    "DebertaSpanClassifier": "classifies two marked spans of a text or a pair of texts",
}
_WHEN_TOO_LONG = {
    "DebertaTextClassifier": "what is longer loses the end of its longest text",
    "DebertaTokenClassifier": 'the words beyond get the label "" and the score 0',
    "DebertaQuestionAnswering": (
        "a longer context goes on in further rows, which cost as much each; a question "
        "is cut to half of a row"
    ),
    "DebertaMultipleChoice": (
        "what is longer loses the end of its text or of its choice, whichever is longer"
    ),
    "DebertaEntityScorer": (
        "a longer passage goes on in further rows, which cost as much each; a query is "
        "cut to half of a row"
    ),
    "DebertaSpanClassifier": (
        "what is longer loses the end of its longest text; a span that is lost there "
        "counts as none"
    ),
}


def make_card(task, signatures, facts, preset, weights, command, consumer):
    """The text of a card.

    Args:
        task: as it was exported.
        signatures: {name: SignatureDef} of the export.
        facts: `Deployment`.
        preset: str, the folder that the task was loaded from.
        weights: str, the dtype that the weights are served in, and what is known of it.
        command: str.
        consumer: int. GraphDef version that a server must read, at the least.
    """
    kind = type(task).__name__
    return deployment.fill(
        deployment.MODEL_CARD,
        name=facts.name,
        version=facts.version,
        description=f"A DeBERTa that {_purpose(task)}.",
        task=kind,
        labels=_labels(task),
        served=(
            f"rows of {LENGTH_STEP} to {facts.sequence_length} tokens, "
            f"{facts.weights_bytes / 1e6:,.1f} MB of weights in {weights}"
        ),
        date=datetime.date.today().isoformat(),
        signatures=_signature_table(signatures),
        request=_request(facts.name, signatures["serving_default"]),
        limits=_limits(kind, facts),
        training=_training(preset),
        scores=_scores(preset, weights),
        geometry=_geometry(task, weights),
        versions=_versions(consumer),
        command=command,
    )


def _purpose(task):
    if getattr(task, "num_classes", None) == 1:
        return "scores a text, or a pair of texts, with a number"
    return _IN_WORDS[type(task).__name__]


def _labels(task):
    if not hasattr(task, "class_names"):
        return "none"
    if task.num_classes == 1:
        return "none: a number"
    # A bar would end the cell of the table.
    names = ", ".join(f"`{name}`".replace("|", r"\|") for name in task.class_names)
    return names if task.labels else f"{names} (their names are {NOT_STATED})"


def _signature_table(signatures):
    lines = ["| signature | inputs | outputs |", "|---|---|---|"]
    for name, signature in signatures.items():
        sides = (_tensors(signature.inputs), _tensors(signature.outputs))
        lines.append(f"| `{name}` | {sides[0]} | {sides[1]} |")
    return "\n".join(lines)


def _tensors(infos):
    return "; ".join(
        f"`{name}` {tf.as_dtype(info.dtype).name} ({_shape(info.tensor_shape)})"
        for name, info in sorted(infos.items())
    )


def _shape(shape):
    """Of SignatureDefs: -1 for an axis of any size."""
    if shape.unknown_rank:
        return "…"
    return ", ".join("any" if one.size < 0 else str(one.size) for one in shape.dim)


def _request(name, signature):
    """A command that asks the REST API."""
    example = warm_up.example(sorted(signature.inputs), num_words=8)
    body = json.dumps({"instances": [example]})
    url = f"http://localhost:{deployment.REST_PORT}{deployment.status_path(name)}"
    return f"curl --data {shlex.quote(body)} {url}:predict"


def _limits(kind, facts):
    lines = [
        f"The longest row is of {facts.sequence_length} tokens, special ones included; "
        f"{_WHEN_TOO_LONG[kind]}."
    ]
    if facts.batches_requests:
        lines.append(
            f"A request has {deployment.MAX_REQUEST_ROWS} rows at most, with the "
            "batching of `batching_parameters.txt`."
        )
    else:
        lines.append(
            "Requests are not batched together: their rows are of any width. How many "
            "rows a request has is bounded by nothing but the server's memory."
        )
    lines.append(
        "TF Serving has no access control and no encryption as it is set up here."
    )
    return "\n".join(f"- {line}" for line in lines)


def _training(preset):
    _, _, config = _read_run(preset)
    settings = config.get("settings")
    if not isinstance(settings, dict):
        return f"Data: {NOT_STATED}. License of data and weights: {NOT_STATED}."
    lines = [
        f"- {title}: {told(settings[key])}"
        for key, title in _TRAINED
        if settings.get(key) not in (None, [])
    ]
    digests = config.get("data")
    lines += [
        f"- digest of {split}: `{digests[split]}`"
        for split in ("train", "dev")
        if isinstance(digests, dict) and split in digests
    ]
    lines.append(f"- license of data and weights: {NOT_STATED}")
    return "\n".join(lines)


def told(value):
    """A setting for readers elsewhere: of a path on this machine its last part."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(value.rstrip(os.sep))
    return str(value)


def _scores(preset, weights):
    splits = _splits_scored(preset)
    if not splits:
        return f"{NOT_STATED.capitalize()}."
    lines = ["| split | score | value |", "|---|---|---|"]
    for split, scores in splits.items():
        lines += [f"| {split} | {name} | {value:.4f} |" for name, value in scores]
    if weights != "float32":
        lines += ["", "Of the weights in float32."]
    return "\n".join(lines)


def _splits_scored(preset):
    """{split: [(name, number)]} of the files that the trainer left."""
    own, results, _ = _read_run(preset)
    splits = {
        split: [
            (name, value)
            for name, value in scores.items()
            if name != "step" and isinstance(value, (int, float))
        ]
        for split, scores in {"dev": own, **results}.items()
        if isinstance(scores, dict)
    }
    named = {"majority_class": "dev and test, always the most frequent class"}
    return {named.get(key, key): scores for key, scores in splits.items() if scores}


def _geometry(task, weights):
    backbone = task.backbone
    facts = {
        "parameters": f"{task.count_params():,}",
        "weights": weights,
        "computation": task.dtype_policy.compute_dtype,
        "layers": backbone.num_layers,
        "width": backbone.hidden_dim,
        "heads": backbone.num_heads,
        "width between": backbone.intermediate_dim,
        "vocabulary": f"{backbone.vocabulary_size:,}",
        "tokenizer": (
            f"{type(task.preprocessor.tokenizer).__name__}, SHA-256 "
            f"`{task.preprocessor.tokenizer.fingerprint()}`"
        ),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _versions(consumer):
    project = pathlib.Path(__file__).parents[1] / "pyproject.toml"
    own = tomllib.loads(project.read_text("utf-8"))["project"]
    versions = {own["name"]: own["version"]}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    versions["server image"] = f"`{deployment.IMAGE}`"
    versions["oldest server known to have all operations:"] = OLDEST_SERVER
    versions["lowest version of GraphDef:"] = consumer
    return "\n".join(f"- {name} {version}" for name, version in versions.items())


def _read_run(preset):
    """(scores, results, config) that the trainer left, {} for what it did not.

    What stands beside a preset is its own if both tell of the same step.
    """
    beside = os.path.dirname(os.path.abspath(preset))
    own = _read(os.path.join(preset, _SCORES))
    results = _read(os.path.join(beside, _RESULTS))
    if "step" not in own or results.get("step") != own["step"]:
        return own, {}, {}
    return own, results, _read(os.path.join(beside, _CONFIG))


def _read(path):
    """The JSON object of a file, {} where there is none or anything else."""
    try:
        return files.read_json(path)
    except (OSError, ValueError):
        return {}
