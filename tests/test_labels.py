"""Classes are told apart by name, whatever their order (SPEC 9.2)."""

import json

import numpy as np
import pytest

from deberta_tf.tasks import DebertaTextClassifier
from tests.foreign_folders import read_folder, write_folder
from tests.small_models import make_backbone, randomize

OFFICIAL = ["contradiction", "neutral", "entailment"]
TFDS = ["entailment", "neutral", "contradiction"]


def inputs():
    token_ids = np.random.default_rng(0).integers(5, 90, (4, 9)).astype("int32")
    return {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}


@pytest.fixture
def mnli(golden, tmp_path):
    """An official classifier of three classes, named as the -mnli checkpoints are."""
    config, tensors = read_folder(golden / "golden/D6_off_heads")
    names = {str(i): name.upper() for i, name in enumerate(OFFICIAL)}
    return write_folder(tmp_path / "mnli", {**config, "id2label": names}, tensors)


def logits_by_name(classifier):
    logits = classifier(inputs()).numpy()
    return {
        name.lower(): logits[:, index] for index, name in enumerate(classifier.labels)
    }


def assert_same_logits(classifier, other):
    expected = logits_by_name(other)
    assert logits_by_name(classifier).keys() == expected.keys()
    for name, column in logits_by_name(classifier).items():
        np.testing.assert_allclose(column, expected[name], atol=1e-6, err_msg=name)


def test_the_order_of_the_mnli_checkpoints_is_not_that_of_the_data_set(mnli):
    official = DebertaTextClassifier.from_preset(mnli)
    assert official.labels == [name.upper() for name in OFFICIAL]
    reordered = DebertaTextClassifier.from_preset(mnli, labels=TFDS)
    assert reordered.labels == TFDS
    assert_same_logits(reordered, official)
    # By index the columns would be mixed up.
    assert np.abs(reordered(inputs()) - official(inputs())).max() > 1e-2


def test_the_names_go_on_to_presets_and_back_to_hugging_face(mnli, tmp_path):
    reordered = DebertaTextClassifier.from_preset(mnli, labels=TFDS)
    reordered.save_to_preset(str(tmp_path / "preset"))
    loaded = DebertaTextClassifier.from_preset(
        str(tmp_path / "preset"), labels=OFFICIAL
    )
    assert loaded.labels == OFFICIAL
    assert_same_logits(loaded, reordered)
    loaded.save_to_huggingface(str(tmp_path / "back"))
    config, tensors = read_folder(tmp_path / "back")
    assert config["id2label"] == {str(i): name for i, name in enumerate(OFFICIAL)}
    _, before = read_folder(tmp_path / "mnli")
    np.testing.assert_array_equal(
        tensors["classifier.weight"], before["classifier.weight"]
    )


def test_other_names_need_a_new_head_to_be_asked_for(mnli):
    others = ["bad", "fair", "good"]
    with pytest.raises(ValueError, match="'bad', 'fair', 'good'.*CONTRADICTION"):
        DebertaTextClassifier.from_preset(mnli, labels=others)
    with pytest.warns(UserWarning, match="all of it: classifier are fresh"):
        classifier = DebertaTextClassifier.from_preset(
            mnli, labels=others, num_classes=3
        )
    official = DebertaTextClassifier.from_preset(mnli)
    pooler, other = classifier.head.pooler.kernel, official.head.pooler.kernel
    np.testing.assert_array_equal(pooler, other)
    assert np.abs(classifier.head.logits.kernel - official.head.logits.kernel).max() > 0
    assert classifier.labels == others


def test_another_number_of_classes_keeps_the_pooler_alone(mnli):
    with pytest.warns(UserWarning, match="all of it: classifier are fresh") as caught:
        classifier = DebertaTextClassifier.from_preset(mnli, num_classes=2)
    assert len(caught) == 1
    official = DebertaTextClassifier.from_preset(mnli)
    np.testing.assert_array_equal(
        classifier.head.pooler.kernel, official.head.pooler.kernel
    )
    assert classifier.labels is None


def test_classes_without_names_take_those_that_are_given(golden, tmp_path):
    config, tensors = read_folder(golden / "golden/D6_off_heads")
    unnamed = {str(i): f"LABEL_{i}" for i in range(3)}
    folder = write_folder(tmp_path / "a", {**config, "id2label": unnamed}, tensors)
    plain = DebertaTextClassifier.from_preset(folder)
    assert plain.labels is None
    named = DebertaTextClassifier.from_preset(folder, labels=OFFICIAL)
    assert named.labels == OFFICIAL
    np.testing.assert_array_equal(named(inputs()), plain(inputs()))


def test_a_preset_of_ours_without_names_takes_those_that_are_given(tmp_path):
    classifier = DebertaTextClassifier(make_backbone(), 3)
    randomize(classifier)
    folder = str(tmp_path / "preset")
    classifier.save_to_preset(folder)
    named = DebertaTextClassifier.from_preset(folder, labels=OFFICIAL)
    assert named.labels == OFFICIAL
    np.testing.assert_array_equal(named(inputs()), classifier(inputs()))


def test_labels_that_differ_by_case_alone_are_refused():
    with pytest.raises(ValueError, match="labels must differ"):
        DebertaTextClassifier(make_backbone(), 2, labels=["Yes", "yes"])


def test_labels_alone_start_the_head_of_an_encoder(tmp_path):
    backbone = make_backbone()
    backbone.save_to_preset(str(tmp_path / "encoder"))
    with pytest.warns(UserWarning, match="no head for DebertaTextClassifier"):
        classifier = DebertaTextClassifier.from_preset(
            str(tmp_path / "encoder"), labels=["no", "yes"]
        )
    assert classifier.num_classes == 2
    task = json.dumps(classifier.get_config(), default=str)
    assert '"labels": ["no", "yes"]' in task


@pytest.fixture
def own(tmp_path):
    """A preset of ours with three named classes."""
    classifier = DebertaTextClassifier(make_backbone(), labels=OFFICIAL)
    randomize(classifier)
    classifier.save_to_preset(str(tmp_path / "own"))
    return str(tmp_path / "own"), classifier


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 3},
        {"num_classes": 3, "labels": OFFICIAL},
        {"num_classes": 3, "labels": TFDS},
    ],
)
def test_as_many_classes_of_the_same_names_keep_the_head(own, arguments):
    folder, classifier = own
    assert_same_logits(
        DebertaTextClassifier.from_preset(folder, **arguments), classifier
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 2},
        {"num_classes": 2, "labels": ["no", "yes"]},
        {"num_classes": 3, "labels": ["bad", "fair", "good"]},
    ],
)
def test_other_classes_in_a_preset_of_ours_keep_the_pooler(own, arguments):
    folder, classifier = own
    with pytest.warns(UserWarning, match="all of it: classifier are fresh") as caught:
        task = DebertaTextClassifier.from_preset(folder, **arguments)
    assert len(caught) == 1
    assert task.labels == arguments.get("labels")
    assert task(inputs()).shape == (4, arguments["num_classes"])
    np.testing.assert_array_equal(
        task.head.pooler.kernel, classifier.head.pooler.kernel
    )
    table = task.backbone.token_embedding.embeddings
    np.testing.assert_array_equal(table, classifier.backbone.token_embedding.embeddings)


def test_placeholders_are_names_when_they_are_asked_for(golden, tmp_path):
    config, tensors = read_folder(golden / "golden/D6_off_heads")
    unnamed = {str(i): f"LABEL_{i}" for i in range(3)}
    folder = write_folder(tmp_path / "a", {**config, "id2label": unnamed}, tensors)
    plain = DebertaTextClassifier.from_preset(folder)(inputs()).numpy()
    turned = DebertaTextClassifier.from_preset(
        folder, labels=["LABEL_2", "LABEL_1", "LABEL_0"]
    )
    np.testing.assert_allclose(turned(inputs()), plain[:, ::-1], atol=1e-6)


@pytest.mark.parametrize(
    "names", [["US", "us", "uk"], ["same", "same", "other"]], ids=str
)
def test_names_that_tell_no_classes_apart_are_left_out(golden, tmp_path, names):
    config, tensors = read_folder(golden / "golden/D6_off_heads")
    id2label = {str(i): name for i, name in enumerate(names)}
    folder = write_folder(tmp_path / "a", {**config, "id2label": id2label}, tensors)
    with pytest.warns(UserWarning, match="They go without names"):
        classifier = DebertaTextClassifier.from_preset(folder)
    assert classifier.labels is None
    assert classifier.num_classes == 3


def test_several_labels_at_once_are_warned_of(golden, tmp_path):
    config, tensors = read_folder(golden / "golden/D6_off_heads")
    config = {**config, "problem_type": "multi_label_classification"}
    folder = write_folder(tmp_path / "a", config, tensors)
    with pytest.warns(UserWarning, match="several labels at once"):
        classifier = DebertaTextClassifier.from_preset(folder)
    plain = DebertaTextClassifier.from_preset(str(golden / "golden/D6_off_heads"))
    np.testing.assert_array_equal(classifier(inputs()), plain(inputs()))
