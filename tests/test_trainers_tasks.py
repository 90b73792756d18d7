"""trainers.finetune --task, from files to scores, predictions and submissions."""

import dataclasses
import json
import statistics

import numpy as np
import pytest
import yaml

import deberta_tf
from deberta_tf import files
from tests.finetuning import save_preset
from tests.small_models import make_backbone, randomize
from tests.task_examples import COLUMNS, make
from trainers import finetune, recipe
from trainers.finetune_config import parse_config


@pytest.fixture(scope="module")
def preset(tmp_path_factory, sentencepiece_proto):
    folder = str(tmp_path_factory.mktemp("pretrained") / "preset")
    return save_preset(folder, sentencepiece_proto)


def fine_tune(preset, folder, **settings):
    settings = {
        "preset": preset,
        "model_dir": folder / "model",
        "sequence_length": 32,
        "batch_size": 4,
        "epochs": 1,
        "learning_rate": 0.01,
        **settings,
    }
    assert not finetune.main([f"--{name}={value}" for name, value in settings.items()])
    return json.loads((folder / "model" / "results.json").read_text())


def json_lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_words_with_tags(preset, tmp_path, sentences):
    """The tags of a user's own files, learned, kept with their names, and scored."""
    for split, part in (("train", sentences[:160]), ("dev", sentences[160:190])):
        lines = []
        for sentence in part:
            words = sentence.rstrip(".?!").split()
            lines += [f"{word}\t{'B-DET' if word == 'the' else 'O'}" for word in words]
            lines.append("")
        (tmp_path / split).write_text("\n".join(lines), "utf-8")
    own = {"train": tmp_path / "train", "dev": tmp_path / "dev"}
    results = fine_tune(preset, tmp_path, task="tags", epochs=4, **own)
    assert set(results["dev"]) == {"f1", "precision", "recall", "accuracy"}
    assert results["dev"]["f1"] > 0.95
    assert results["majority_class"] is None
    kept = deberta_tf.DebertaTokenClassifier.from_preset(
        str(tmp_path / "model" / "preset"), compile=False
    )
    predictions = json_lines(tmp_path / "model" / "predictions-dev.jsonl")
    words = [sentence.rstrip(".?!").split() for sentence in sentences[160:190]]
    assert kept.tag(words) == [line["prediction"] for line in predictions]
    assert predictions[0]["scores"][0].keys() == {"O", "B-DET"}


def squad(name):
    columns = COLUMNS[name]
    paragraphs = [
        {
            "context": context,
            "qas": [
                {
                    "id": identity,
                    "question": question,
                    "is_impossible": not texts,
                    "answers": [
                        {"text": text, "answer_start": start}
                        for text, start in zip(texts, starts, strict=True)
                    ],
                }
            ],
        }
        for identity, question, context, texts, starts in zip(
            *(
                columns[name]
                for name in ("id", "question", "context", "answers", "answer_starts")
            ),
            strict=True,
        )
    ]
    return json.dumps({"version": "v2.0", "data": [{"paragraphs": paragraphs}]})


def test_questions_with_and_without_answers(preset, tmp_path):
    for split in ("train", "dev"):
        (tmp_path / f"{split}-v2.0.json").write_text(squad("squad2"), "utf-8")
    results = fine_tune(
        preset, tmp_path, task="squad2", data_dir=tmp_path, window_overlap=8
    )
    assert {"exact", "f1", "best_f1", "best_f1_threshold"} <= set(results["dev"])
    model = tmp_path / "model"
    predictions = json_lines(model / "predictions-dev.jsonl")
    handed_in = json.loads((model / "submission/SQuAD-2.0-dev.json").read_text())
    assert handed_in == {line["id"]: line["prediction"] for line in predictions}
    kept = deberta_tf.DebertaQuestionAnswering.from_preset(
        str(model / "preset"), compile=False
    )
    assert kept.no_answer_threshold == 0.0
    answers = kept.answer(COLUMNS["squad2"]["question"], COLUMNS["squad2"]["context"])
    assert [one.text for one in answers] == [line["prediction"] for line in predictions]


@pytest.mark.slow
def test_entities_of_passages(preset, tmp_path):
    columns = COLUMNS["record"]
    rows = [
        {
            "idx": number,
            "passage": {
                "text": columns["passage"][number],
                "entities": [
                    {"start": start, "end": end - 1}
                    for start, end in columns["entities"][number]
                ],
            },
            "qas": [
                {
                    "idx": number,
                    "query": columns["query"][number],
                    "answers": [{"text": text} for text in columns["answers"][number]],
                }
            ],
        }
        for number in range(2)
    ]
    for name in ("train", "val", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    results = fine_tune(
        preset, tmp_path, task="record", data_dir=tmp_path, epochs=20, window_overlap=8
    )
    assert results["dev"] == results["test"]
    assert results["dev"]["exact"] == 1.0
    handed_in = json_lines(tmp_path / "model" / "submission" / "ReCoRD.jsonl")
    assert handed_in == [{"idx": 0, "label": "Oslo"}, {"idx": 1, "label": "captain"}]


@pytest.mark.slow
def test_several_seeds_have_a_mean_and_a_deviation(preset, tmp_path, capsys):
    row = {"premise": "the jury", "choice1": "my sister", "choice2": "a cat"}
    rows = [
        {**row, "question": ("cause", "effect")[n % 2], "label": n % 2, "idx": n}
        for n in range(8)
    ]
    for name in ("train", "val"):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    hidden = [{k: v for k, v in one.items() if k != "label"} for one in rows]
    write_jsonl(tmp_path / "test.jsonl", hidden)
    results = fine_tune(preset, tmp_path, task="copa", data_dir=tmp_path, seeds=2)
    model = tmp_path / "model"
    found = [
        json.loads((model / f"seed-{seed}" / "results.json").read_text())
        for seed in (1234, 1235)
    ]
    assert list(results["seeds"].values()) == found
    scores = [one["dev"]["accuracy"] for one in found]
    assert results["mean"]["dev"]["accuracy"] == pytest.approx(np.mean(scores))
    assert results["std"]["dev"]["accuracy"] == pytest.approx(statistics.stdev(scores))
    assert "test" not in results["mean"]
    assert "±" in capsys.readouterr().out.splitlines()[-1]
    for seed in (1234, 1235):
        handed_in = json_lines(model / f"seed-{seed}" / "submission" / "COPA.jsonl")
        assert [line["idx"] for line in handed_in] == list(range(8))
    # The same command finds them all finished.
    assert fine_tune(preset, tmp_path, task="copa", data_dir=tmp_path, seeds=2) == (
        results
    )


def test_a_task_of_the_same_classes_is_predicted_as_well(preset, tmp_path):
    lines = ["sentence1\tsentence2\tgold_label", "the jury\ta cat\tneutral"]
    lines += ["my sister\tthat song\tentailment", "nobody\tthe cat\tcontradiction"]
    for name in ("train", "dev_matched", "dev_mismatched"):
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines), "utf-8")
    diagnostic = "index\tsentence1\tsentence2\n0\ta cat\tthe cat\n1\tOslo\tthe jury"
    (tmp_path / "diagnostic.tsv").write_text(diagnostic, "utf-8")
    results = fine_tune(
        preset, tmp_path, task="mnli", data_dir=tmp_path, also="ax", epochs=2
    )
    assert set(results["dev_mismatched"]) == {"accuracy"}
    assert results["ax"] is None
    kept = deberta_tf.DebertaTextClassifier.from_preset(
        str(tmp_path / "model" / "preset"), compile=False
    )
    assert kept.labels == ["contradiction", "neutral", "entailment"]
    handed_in = (tmp_path / "model" / "submission" / "AX.tsv").read_text()
    assert [line.split("\t")[0] for line in handed_in.split()[2:][::2]] == ["0", "1"]


def test_a_preset_of_other_classes_gives_its_pooler(sentencepiece_proto, tmp_path):
    tokenizer = deberta_tf.DebertaSentencePieceTokenizer(sentencepiece_proto)
    mnli = deberta_tf.DebertaTextClassifier(
        make_backbone(num_layers=1),
        labels=["contradiction", "neutral", "entailment"],
        preprocessor=deberta_tf.DebertaTextClassifierPreprocessor(tokenizer, 24),
    )
    randomize(mnli)
    mnli.save_to_preset(str(tmp_path / "ours"))
    mnli.save_to_huggingface(str(tmp_path / "theirs"))
    for folder, name in (("ours", "mrpc"), ("theirs", "mrpc"), ("theirs", "race")):
        setup, _ = make(name)
        config = dataclasses.replace(setup.config, preset=str(tmp_path / folder))
        task = finetune.build_task(dataclasses.replace(setup, config=config))
        np.testing.assert_array_equal(task.head.pooler.kernel, mnli.head.pooler.kernel)
        assert task.head.logits.kernel.shape[1] == (2 if name == "mrpc" else 1)


def test_a_test_set_that_is_not_the_official_one_is_predicted_alone(
    preset, tmp_path, capsys
):
    rows = [
        {"premise": "the jury", "choice1": "a", "choice2": "b", "question": "cause"}
        | {"label": n % 2, "idx": 100 + n}
        for n in range(4)
    ]
    write_jsonl(tmp_path / "own.jsonl", rows)
    own = dict.fromkeys(("train", "dev", "test"), tmp_path / "own.jsonl")
    results = fine_tune(preset, tmp_path, task="copa", **own)
    assert "accuracy" in results["test"]
    assert "test: nothing to hand in: copa: the ids must be" in capsys.readouterr().out
    assert not (tmp_path / "model" / "submission").exists()


def test_parts_have_the_recipe_of_the_whole(preset, capsys):
    parts = settings_of(preset="deberta_large", task="race_high")
    assert (
        parts.learning_rate == recipe.recipe("race", "deberta_large")["learning_rate"]
    )
    settings_of(preset="deberta_large", task="tags", train="a", dev="b")
    assert "recipe: none for tags" in capsys.readouterr().out


def settings_of(**given):
    given = {"model_dir": "m", "task": "cola", **given}
    return parse_config([f"--{name}={value}" for name, value in given.items()])


def test_the_recipe_of_a_published_size_fills_what_is_not_given(capsys):
    config = settings_of(preset="deberta_v3_large", load_weights="false", epochs=2)
    wanted = recipe.recipe("cola", "deberta_v3_large")
    assert config.epochs == 2
    assert config.learning_rate == wanted["learning_rate"] == 5.5e-6
    assert (config.sequence_length, config.warmup_steps) == (64, 50)
    assert config.official_schedule
    assert "cola of deberta_v3_large, values published" in capsys.readouterr().out


def test_a_warm_up_that_is_given_overrules_the_recipe():
    config = settings_of(preset="deberta_v3_large", warmup_fraction=0.06)
    assert (config.warmup_fraction, config.warmup_steps) == (0.06, None)


def test_the_settings_of_a_file_overrule_the_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"batch_size": 7}), "utf-8")
    config = settings_of(preset="deberta_v3_large", config=tmp_path / "mine.yaml")
    assert (config.batch_size, config.epochs) == (7, 10)


def test_a_model_of_no_published_size_has_the_defaults(preset, capsys):
    config = settings_of(preset=preset)
    assert config.learning_rate == 5e-5
    assert "of no published size" in capsys.readouterr().out
    named = settings_of(preset=preset, recipe="deberta_base")
    assert named.learning_rate == 2e-5
    assert settings_of(preset=preset, recipe="off").learning_rate == 5e-5


def test_a_recipe_of_no_size_is_refused(preset):
    with pytest.raises(files.UsageError, match="no recipe for the size 'tiny'"):
        settings_of(preset=preset, recipe="tiny")


def test_copa_counts_questions_where_its_recipe_counted_pairs():
    config = settings_of(preset="deberta_base", task="copa")
    # 32 pairs; 400 questions are more than its warm-up.
    assert config.batch_size == 16
    assert 400 / config.batch_size * config.epochs > config.warmup_steps
