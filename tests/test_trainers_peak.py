import types

import pytest

from deberta_tf.masked_lm import DebertaMaskedLM
from tests.small_models import make_backbone
from tests.test_replaced_token import make_detection
from trainers import peak, pretrain


def config_of(**settings):
    settings = {"precision": "mixed_bfloat16", "tpu": None, **settings}
    return types.SimpleNamespace(**settings)


@pytest.mark.parametrize(
    ("kind", "operations"),
    [("v5litepod-8", 197e12), ("v3-8", 61.5e12), ("v6e-4", 918e12), ("v99-8", None)],
)
def test_a_tpu_is_known_by_its_type(monkeypatch, kind, operations):
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", kind)
    assert peak.peak_operations(config_of(tpu="local")) == operations


def test_a_gpu_is_known_by_its_name(monkeypatch):
    monkeypatch.setattr(peak, "_gpu_name", lambda: " NVIDIA H100 80GB HBM3")
    assert peak.peak_operations(config_of()) == 989e12
    assert peak.peak_operations(config_of(precision="float32")) is None


def test_no_chip_no_share():
    assert peak.peak_operations(config_of()) is None


def test_operations_are_six_a_weight_and_the_scores():
    backbone = make_backbone(position_terms=())
    length, width = 10, 16
    weights = sum(w.numpy().size for b in backbone.encoder.blocks for w in b.weights)
    # In each of two blocks a token takes scores and sums values: `length` products of
    # `width`, a multiplication and an addition each; once forward, twice backward.
    scores = 2 * (2 * length * width * 2) * 3
    task = DebertaMaskedLM(backbone)
    assert peak.operations_per_token(task, length) == 6 * weights + scores
    both = make_detection()
    assert peak.operations_per_token(both, length) > 6 * weights


def test_the_share_is_that_of_all_replicas(monkeypatch):
    task = DebertaMaskedLM(make_backbone())
    monkeypatch.setattr(peak, "peak_operations", lambda config: 1e9)
    config = types.SimpleNamespace(objective="masked_lm", batch_size=4)
    found = pretrain.derived_scalars(config, task, 10, {"loss": 2.0}, 0.5)
    tokens = 4 * 10 / 0.5
    share = tokens * peak.operations_per_token(task, 10) / 1e9
    assert found["share_of_peak"] == pytest.approx(share)
    assert found["tokens_per_second"] == tokens
    assert found["perplexity"] == pytest.approx(7.389, rel=1e-3)
