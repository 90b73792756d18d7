"""The README's Python runs as it stands, on tiny models under published names."""

import pathlib
import re

import numpy as np
import pytest

import deberta_tf
from tests.foreign_folders import cache_hub_repository
from tests.mirrored import mirrored
from tests.small_models import make_backbone, randomize

README = pathlib.Path(__file__).parents[1] / "README.md"
# Room for the README's sentences in pieces of a small vocabulary.
LONG = {"max_sequence_length": 48}


def blocks(section):
    text = README.read_text("utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def randomized(task):
    randomize(task)
    return task


@pytest.fixture
def hub(tmp_path, monkeypatch, sentencepiece_proto):
    """Tiny checkpoints under the handles that the README names."""
    monkeypatch.chdir(tmp_path)
    tokenizer = deberta_tf.DebertaSentencePieceTokenizer(sentencepiece_proto)
    labels = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
    tasks = {
        "deberta-base-mnli": deberta_tf.DebertaTextClassifier(
            make_backbone(**LONG, convolution_kernel_size=3), labels=labels
        ),
        "deberta-base": deberta_tf.DebertaMaskedLM(make_backbone(**LONG)),
        "deberta-v3-base": make_backbone(**LONG, num_layers=1),
        "deberta-v3-small": deberta_tf.DebertaReplacedTokenDetection(
            make_backbone(**LONG),
            deberta_tf.DebertaMaskedLM(make_backbone(**LONG, num_layers=1)),
        ),
    }
    for name, task in tasks.items():
        folder = tmp_path / "folders" / name
        randomized(task).save_to_huggingface(str(folder), tokenizer=tokenizer)
        handle = f"microsoft/{name}"
        cache_hub_repository(tmp_path / "hub", handle, folder, monkeypatch)
    return tmp_path


@pytest.mark.filterwarnings(
    "ignore:The preset has no head for DebertaTextClassifier:UserWarning",
    "ignore:Hugging Face's library has no class with this head:UserWarning",
)
def test_a_checkpoint_is_brought_tuned_and_taken_back(hub, capsys):
    load, fill = blocks("Bring your checkpoint")
    assert len(load.strip().splitlines()) < 15
    scope = {}
    exec(load, scope)
    assert "['CONTRADICTION', 'NEUTRAL', 'ENTAILMENT']" in capsys.readouterr().out
    again = deberta_tf.DebertaTextClassifier.from_preset("my_classifier")
    assert again.labels == ["bad", "good"]
    texts = ["a lovely film"]
    np.testing.assert_array_equal(
        again.predict(texts, verbose=0), scope["mine"].predict(texts, verbose=0)
    )
    exec(fill, scope)
    ((first, *_),) = scope["masked_lm"].fill_mask("The [MASK].")
    assert 0 < first[1] <= 1
    assert scope["generator"].backbone.num_layers == 1


@pytest.mark.filterwarnings(
    "ignore:The preset has no head for Deberta:UserWarning",
    "ignore:Hugging Face's library has no class with this head:UserWarning",
)
def test_words_are_tagged_and_questions_answered(hub, capsys):
    (block,) = blocks("Tasks")
    scope = {}
    exec(block, scope)
    (tags,) = scope["tagger"].tag([["Charles", "Babbage", "did"]])
    assert len(tags) == 3
    assert {*tags} <= {"O", "B-PER", "I-PER"}
    answer = scope["answer"]
    assert answer.text == scope["contexts"][0][answer.start : answer.end]
    assert (hub / "reader" / "1" / "saved_model.pb").is_file()


@pytest.mark.filterwarnings(
    "ignore:The preset has no head for DebertaTextClassifier:UserWarning",
    "ignore:Hugging Face's library has no class with this head:UserWarning",
)
def test_a_task_is_tuned_scale_invariantly(hub):
    (block,) = blocks("Scale-invariant fine-tuning")
    scope = {}
    exec(block, scope)
    assert scope["task"].optimizer.iterations.numpy() == 4
    again = deberta_tf.DebertaTextClassifier.from_preset(
        "robust_classifier", compile=False
    )
    assert again.labels == ["bad", "good"]


@pytest.mark.filterwarnings(
    "ignore:The preset has no head for DebertaTextClassifier:UserWarning",
    "ignore:Hugging Face's library has no class with this head:UserWarning",
)
@pytest.mark.slow
def test_it_trains_on_two_devices(hub, monkeypatch):
    (block,) = blocks("On several devices")
    assert len(block.strip().splitlines()) <= 15
    strategy = mirrored(2)
    monkeypatch.setattr("tensorflow.distribute.MirroredStrategy", lambda: strategy)
    scope = {}
    exec(block, scope)
    task = scope["task"]
    assert task.distribute_strategy.num_replicas_in_sync == 2
    assert task.optimizer.iterations.numpy() == 3 * 128 // 32
    texts = ["a lovely film", "a waste of time"]
    assert task.predict(texts, batch_size=2, verbose=0).shape == (2, 2)
