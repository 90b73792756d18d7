"""Batches that are no numbers, and losses that stand out."""

import dataclasses
import math
import re

import numpy as np
import pytest

from tests.test_trainers_run import TARGETS, lines, small_config, train
from trainers.state import TrainingDiverged


def test_one_batch_that_is_no_number_does_no_harm(tmp_path, capsys):
    targets = TARGETS.copy()
    targets[4 * 3] = math.nan  # Step 4 takes examples 12 to 15.
    config = small_config(tmp_path, log_every=6)
    task, _ = train(config, targets)
    out = capsys.readouterr().out
    assert out.count("the gradients are not finite; no update") == 1
    assert "step 4: the gradients are not finite" in out
    (line,) = lines(config)
    assert math.isfinite(line["train/loss"])
    assert all(np.isfinite(v.numpy()).all() for v in task.weights)
    assert task.optimizer.iterations.numpy() == 6


def test_many_of_them_stop_the_run_at_its_step(tmp_path):
    targets = np.concatenate([TARGETS, np.full(80, math.nan)])
    config = small_config(tmp_path, save_every=3)
    message = r"nan at step 16, 10 updates .*step-000000015\.safetensors\. A lower"
    with pytest.raises(TrainingDiverged, match=message):
        train(config, targets, total_steps=20)


def test_a_spike_of_the_loss_is_told_of(tmp_path, capsys):
    targets = np.tile(TARGETS, 6)
    targets[4 * 29] = 30.0  # Step 30.
    config = small_config(tmp_path, log_every=8)
    config = dataclasses.replace(config, learning_rate=0.0)
    train(config, targets, total_steps=36)
    out = capsys.readouterr().out
    assert re.findall(r"step (\d+): the loss is [\d.]+, a spike over", out) == ["30"]
    spikes = [line for line in lines(config) if "train/loss_spike" in line]
    assert [line["step"] for line in spikes] == [30]
    assert spikes[0]["train/loss_spike"] > 200
