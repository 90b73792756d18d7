"""The C++ host, built once, and small tasks for it to serve."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import deberta_tf
from deberta_tf.byte_pair import byte_alphabet
from tests.small_models import make_backbone, randomize
from tools.serving_load import ops_library
from tools.serving_requests import write_requests

_ROOT = pathlib.Path(__file__).parents[1]
TEXTS = ["the old captain sold the harbour.", "", "my sister painted that song! " * 9]


@functools.cache
def build():
    """Path of the host, as `make serving-host` builds it."""
    path = os.path.join("build", "serving_host")
    command = ["make", "--jobs=2", "-f", "tools/serving_host/Makefile"]
    command += [f"PYTHON={sys.executable}", f"OUTPUT={path}"]
    made = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return str(_ROOT / path)


def run(folder, *arguments, library=True, given=None):
    """What the host did: `subprocess.CompletedProcess`.

    Args:
        folder: str, of a served version.
        arguments: str, the command and what it takes.
        library: bool. Whether the ops of TF-Text are loaded.
        given: bytes, stdin.
    """
    ops = ["--ops", ops_library()] if library else []
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [build(), folder, *ops, *arguments]
    return subprocess.run(command, input=given, capture_output=True, env=environment)


def lines_of(done):
    """The JSON lines that a run of the host printed."""
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def replay(folder, path, requests, *flags, library=True):
    """A line of the host for each `PredictRequest`, which are written to `path`."""
    write_requests(str(path), requests)
    return lines_of(run(folder, *flags, "replay", str(path), library=library))


def byte_pair_tokenizer():
    merges = ["t h", "th e", "\u0120 the", "\u00c3 \u00af", "\u00f0 \u0141"]
    tokens = [*byte_alphabet(), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return deberta_tf.DebertaBytePairTokenizer(vocabulary, merges)


def text_classifier(tokenizer, **kwargs):
    preprocessor = deberta_tf.DebertaTextClassifierPreprocessor(tokenizer, 24)
    size = tokenizer.vocabulary_size()
    task = deberta_tf.DebertaTextClassifier(
        make_backbone(vocabulary_size=size, num_segments=2),
        preprocessor=preprocessor,
        **(kwargs or {"labels": ["calm", "loud", "na\u00efve"]}),
    )
    randomize(task)
    return task


def regression(tokenizer):
    return text_classifier(tokenizer, num_classes=1)


def token_classifier(tokenizer):
    preprocessor = deberta_tf.DebertaTokenClassifierPreprocessor(tokenizer, 24)
    return deberta_tf.DebertaTokenClassifier(
        make_backbone(num_layers=1), labels=["O", "WHO"], preprocessor=preprocessor
    )


def question_answering(tokenizer):
    preprocessor = deberta_tf.DebertaQuestionAnsweringPreprocessor(tokenizer, 32, 8)
    return deberta_tf.DebertaQuestionAnswering(
        make_backbone(num_layers=1), preprocessor=preprocessor
    )


def multiple_choice(tokenizer):
    preprocessor = deberta_tf.DebertaMultipleChoicePreprocessor(tokenizer, 32)
    return deberta_tf.DebertaMultipleChoice(
        make_backbone(num_layers=1, num_segments=2), preprocessor=preprocessor
    )


def entity_scorer(tokenizer):
    preprocessor = deberta_tf.DebertaEntityScorerPreprocessor(
        tokenizer, 32, overlap=8, max_entities=5, max_entity_length=8
    )
    return deberta_tf.DebertaEntityScorer(
        make_backbone(num_layers=1), preprocessor=preprocessor
    )


def span_classifier(tokenizer):
    preprocessor = deberta_tf.DebertaSpanClassifierPreprocessor(tokenizer, 24)
    return deberta_tf.DebertaSpanClassifier(
        make_backbone(num_layers=1, num_segments=2), 2, preprocessor=preprocessor
    )


# What is asked of them: inputs of serving_default.
QUESTIONS = {
    regression: {"text": TEXTS},
    token_classifier: {"words": [["the", "captain", "sold"], ["nobody", "", ""]]},
    question_answering: {"question": ["who sold?", ""], "context": TEXTS[::2]},
    multiple_choice: {"text": TEXTS[:2], "choices": [["yes", "no"], ["a cat", ""]]},
    entity_scorer: {
        "passage": TEXTS[::2],
        "query": ["@placeholder sold", "who painted @placeholder?"],
        "entity_starts": [[4, 25], [3, 0]],
        "entity_ends": [[15, 32], [9, 0]],
    },
    span_classifier: {
        "text": TEXTS[::2],
        "span_starts": [[4, 8], [3, 0]],
        "span_ends": [[7, 15], [9, 2]],
    },
}
