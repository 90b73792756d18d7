"""Fits of all tasks by one of several processes: `python -m tests.worker_fits PATH`.

TF_CONFIG tells which one; the first writes what it has learnt to PATH.
"""

import sys

import numpy as np
import tensorflow as tf

from deberta_tf.masked_lm import DebertaMaskedLM
from deberta_tf.tasks import DebertaTextClassifier
from tests import test_replaced_token_training as replaced_token
from tests.test_strategies import (
    TOGETHER,
    classifier_data,
    is_moved_by_rounding,
    masked_lm_data,
    train,
)
from trainers import devices


def fits(strategy):
    """Yields (name, {weight: array}) of each fit."""
    data = masked_lm_data()
    bfloat16 = {"dtype": "mixed_bfloat16"}
    # On one device a step takes its batch whole.
    clipping = {"compile": {"global_clipnorm": 0.05}}
    together = {**TOGETHER, **({} if strategy else clipping)}
    tasks = {
        "together": lambda: train(DebertaMaskedLM, data, strategy, **together),
        "bfloat16": lambda: train(DebertaMaskedLM, data, strategy, backbone=bfloat16),
        "classifier": lambda: train(
            DebertaTextClassifier, classifier_data(), strategy, num_classes=2
        ),
        "replaced_token": lambda: replaced_token.trained(strategy),
    }
    for name, fit in tasks.items():
        task, _ = fit()
        yield (
            name,
            {
                f"{number} {weight.path}": np.array(weight.numpy(), "float32")
                for number, weight in enumerate(task.weights)
                if not is_moved_by_rounding(weight)
            },
        )


def main(path):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    assert strategy.num_replicas_in_sync == 2
    learnt = {
        f"{name} {key}": value
        for name, values in fits(strategy)
        for key, value in values.items()
    }
    if devices.is_chief():
        np.savez(path, **learnt)


if __name__ == "__main__":
    main(*sys.argv[1:])
