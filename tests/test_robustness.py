import json

import numpy as np
import pytest

from deberta_tf.files import UsageError
from tools import noise, robustness

CSV = "text,label\nwhat a lovely film,good\nreally boring story,bad\n"


class Classifier:
    """Says good where a text has "lovely"; keeps what it was asked."""

    labels = ["bad", "good"]
    asked = []

    def predict(self, texts, batch_size, verbose):
        self.asked.append(texts)
        return np.array([[0.0, 1.0 if "lovely" in text else -1.0] for text in texts])


@pytest.fixture
def classifier(monkeypatch):
    loaded = Classifier()
    loaded.asked = []

    class Loader:
        from_preset = staticmethod(lambda preset: loaded)

    monkeypatch.setattr(robustness, "DebertaTextClassifier", Loader)
    return loaded


def test_conditions_are_the_texts_themselves_and_both_noises_at_both_shares():
    text = "wonderful acting everywhere throughout " * 5
    copies = {name: copy(text) for name, copy in robustness.conditions().items()}
    assert copies == {
        "clean": text,
        "10 % typos": noise.typos(text, 0.1),
        "30 % typos": noise.typos(text, 0.3),
        "10 % dropped words": noise.dropped_words(text, 0.1),
        "30 % dropped words": noise.dropped_words(text, 0.3),
    }


def test_an_accuracy_is_the_share_of_right_labels_of_the_noisy_copies():
    def predict(texts):
        return ["good" if "lovely" in text else "bad" for text in texts]

    texts = ["lovely"] * 8 + ["boring"] * 2
    scores = robustness.accuracies(predict, texts, ["good"] * 10)
    assert scores["clean"] == 0.8
    # A text of one word: 0.3 of them get a typo, and none is dropped. One text always
    # becomes the same copy.
    wrong = noise.typos("lovely", 0.3) != "lovely"
    assert scores["30 % typos"] == (0.0 if wrong else 0.8)
    assert scores["30 % dropped words"] == 0.8


def test_the_command_scores_a_preset(classifier, tmp_path, capsys):
    test, output = tmp_path / "test.csv", tmp_path / "scores.json"
    test.write_text(CSV)
    flags = ["--preset=preset", f"--test={test}", f"--output={output}"]
    robustness.main(flags)
    scores = json.loads(output.read_text())
    assert list(scores) == list(robustness.conditions())
    assert scores["clean"] == 1.0
    assert classifier.asked[0] == ["what a lovely film", "really boring story"]
    assert "clean: 1.0000" in capsys.readouterr().out
    test.write_text("text,label\nso so,neither\n")
    with pytest.raises(UsageError, match="has the label 'neither'; the classes of"):
        robustness.main(flags)
    with pytest.raises(UsageError, match="--batch_size must be at least 1; got 0"):
        robustness.main([*flags, "--batch_size=0"])
