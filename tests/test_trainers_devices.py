"""Pretraining on several devices and several processes, as commands."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from deberta_tf.files import UsageError
from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.replaced_token import DebertaReplacedTokenDetection
from deberta_tf.tasks import DebertaTextClassifier
from tests import worker_fits
from tests.test_strategies import BFLOAT16_BOUND
from tests.test_trainers_pretrain import data, flags
from trainers import devices, run

__all__ = ["data"]
# Without dropout devices and processes draw nothing of their own.
SETTINGS = {
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "learning_rate": 1e-4,
    "warmup_steps": 0,
    "total_steps": 20,
    "eval_every": 10,
    "average_decay": 0.9,
}


def start(command, environment=None, module="trainers.pretrain"):
    return subprocess.Popen(
        [sys.executable, "-m", module, *command],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out


def ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    found = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return found


def workers(command, module="trainers.pretrain"):
    """Two processes of one run, over loopback."""
    hosts = [f"localhost:{port}" for port in ports(2)]
    started = []
    for index in range(2):
        cluster = {
            "cluster": {"worker": hosts},
            "task": {"type": "worker", "index": index},
        }
        started.append(start(command, {"TF_CONFIG": json.dumps(cluster)}, module))
    return started


def weights(model_dir, task_class=DebertaMaskedLM):
    task = task_class.from_preset(str(model_dir / "preset"), compile=False)
    return {f"{i} {w.path}": w.numpy() for i, w in enumerate(task.weights)}


def check_same_run(one, other, task_class=DebertaMaskedLM):
    expected, found = weights(one, task_class), weights(other, task_class)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        # Its gradient is rounding alone (SPEC 14.4).
        if not name.endswith("key/bias"):
            np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
    for a, b in zip(scalars(one), scalars(other), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {
            "train/examples_per_second",
            "train/tokens_per_second",
        }:
            assert a[name] == pytest.approx(b[name], rel=1e-3), name


def scalars(model_dir):
    text = (model_dir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["two_workers", "two_devices"])
def test_a_run_on_several_devices_is_that_of_one(data, tmp_path, kind):
    settings = {**SETTINGS, "held_out": data / "rows" / "held_out"}
    alone = start(flags(data, tmp_path / "alone", **settings))
    command = flags(data, tmp_path / kind, **settings, gradient_accumulation_steps=2)
    if kind == "two_devices":
        started = [start([*command, "--num_replicas=2"])]
    else:
        started = workers(command)
    finish(alone)
    outs = [finish(process) for process in started]
    words = "2 CPU devices" + (", 2 workers" if kind == "two_workers" else "")
    assert words in outs[0]
    check_same_run(tmp_path / "alone", tmp_path / kind)


@pytest.mark.slow
def test_what_two_processes_fit_is_that_of_one_device(tmp_path):
    path = tmp_path / "workers.npz"
    for process in workers([str(path)], "tests.worker_fits"):
        finish(process)
    alone = dict(worker_fits.fits(None))
    found = np.load(path)
    assert len(found) == sum(len(values) for values in alone.values())
    for name, values in alone.items():
        bound = BFLOAT16_BOUND if name == "bfloat16" else 1e-5
        for key, value in values.items():
            np.testing.assert_allclose(
                found[f"{name} {key}"], value, atol=bound, err_msg=f"{name} {key}"
            )


def test_an_unknown_tpu_is_one_line(tmp_path):
    process = start(
        ["--tpu=no-such-tpu", "--data=x", f"--model_dir={tmp_path}", "--preset=y"]
        + ["--total_steps=1"]
    )
    _, err = process.communicate()
    assert process.returncode == 2
    assert [line for line in err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"batch_size": 6, "gradient_accumulation_steps": 4},
            "divisible by 4: 1 replicas, gradient_accumulation_steps=4. Received: 6",
        ),
        (
            {"batch_size": 5, "num_replicas": 2},
            "divisible by 2: 2 replicas, gradient_accumulation_steps=1. Received: 5",
        ),
    ],
)
def test_a_batch_that_can_not_be_divided_is_refused(tmp_path, settings, message):
    config = run.RunConfig(model_dir=str(tmp_path), **settings)
    with pytest.raises(UsageError, match=message):
        devices.make_strategy(config)


@pytest.mark.slow
def test_replaced_tokens_are_learnt_on_two_devices(data, tmp_path):
    settings = {
        **SETTINGS,
        "objective": "replaced_token",
        "num_layers": 2,
        "held_out": data / "rows" / "held_out",
        "num_replicas": 2,
        "gradient_accumulation_steps": 2,
    }
    finish(start(flags(data, tmp_path / "two", **settings)))
    task = DebertaReplacedTokenDetection.from_preset(
        str(tmp_path / "two" / "preset"), compile=False
    )
    assert task.generator.backbone.num_layers == 1
    assert task.num_tokens == task.preprocessor.tokenizer.vocabulary_size()
    last = [line for line in scalars(tmp_path / "two") if "train/loss" in line][-1]
    names = {name.removeprefix("train/") for name in last} - {"step"}
    assert names == {
        "loss",
        "generator_loss",
        "generator_accuracy",
        "discriminator_loss",
        "discriminator_accuracy",
        "discriminator_auc",
        "replaced_rate",
        "generator_gradient_norm",
        "discriminator_gradient_norm",
        "skipped_updates",
        "perplexity",
        "learning_rate",
        "examples_per_second",
        "tokens_per_second",
    }


@pytest.mark.slow
def test_a_fine_tuning_on_several_devices_is_that_of_one(data, tmp_path):
    sentences = ["the good film", "a bad film", "good", "so bad", "bad", "good good"]
    lines = [f"{text},{int('good' in text)}" for text in sentences * 4]
    path = tmp_path / "texts.csv"
    path.write_text("\n".join(["sentence,label", *lines]) + "\n")
    pretrained = {**SETTINGS, "total_steps": 1, "held_out": None}
    finish(start(flags(data, tmp_path / "pretrained", **pretrained)))
    settings = {
        "preset": tmp_path / "pretrained" / "preset",
        "train": path,
        "dev": path,
        "epochs": 4,
        "batch_size": 8,
        "sequence_length": 12,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "classifier_dropout": 0.0,
    }

    def command(name):
        values = {**settings, "model_dir": tmp_path / name}
        return [f"--{key}={value}" for key, value in values.items()]

    module = "trainers.finetune"
    finish(start(command("alone"), module=module))
    finish(start([*command("two"), "--num_replicas=2"], module=module))
    for process in workers(command("workers"), module):
        finish(process)
    results = [
        json.loads((tmp_path / name / "results.json").read_text())
        for name in ("alone", "two", "workers")
    ]
    assert results[0]["dev"]["accuracy"] > 0.4
    for other in results[1:]:
        assert other["dev"] == pytest.approx(results[0]["dev"], abs=1e-6)
    for name in ("two", "workers"):
        check_same_run(tmp_path / "alone", tmp_path / name, DebertaTextClassifier)


@pytest.mark.parametrize(
    ("cluster", "task", "chief"),
    [
        ({}, {}, True),
        ({"worker": ["a", "b"]}, {"type": "worker", "index": 0}, True),
        ({"worker": ["a", "b"]}, {"type": "worker", "index": 1}, False),
        ({"chief": ["c"], "worker": ["a"]}, {"type": "chief", "index": 0}, True),
        ({"chief": ["c"], "worker": ["a"]}, {"type": "worker", "index": 0}, False),
    ],
)
def test_one_process_writes(monkeypatch, cluster, task, chief):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    assert devices.is_chief() == chief
    assert devices.is_multi_worker() == (len(cluster) > 0)
