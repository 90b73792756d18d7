"""Exports a fine-tuned preset as a SavedModel that answers raw inputs.

python -m tools.export_saved_model --preset PRESET_DIR --output SERVED_DIR
"""

import argparse
import os

import deberta_tf
from deberta_tf import files

_CLASSES = {
    "ForSequenceClassification": deberta_tf.DebertaTextClassifier,
    "ForTokenClassification": deberta_tf.DebertaTokenClassifier,
    "ForQuestionAnswering": deberta_tf.DebertaQuestionAnswering,
    "ForMultipleChoice": deberta_tf.DebertaMultipleChoice,
}


def main(argv=None):
    arguments = parse(argv)
    if not os.path.isdir(arguments.preset):
        raise files.UsageError(f"--preset {arguments.preset!r} is not a folder")
    task = task_class(arguments.preset).from_preset(arguments.preset)
    path = task.export_for_serving(arguments.output, version=arguments.version)
    size = sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )
    names = getattr(task, "labels", None)
    classes = f", classes {names}" if names else ""
    print(f"exported {path}: {size / 1e6:.1f} MB, {type(task).__name__}{classes}")


def task_class(preset):
    """The class of the task that a folder holds, of ours or of Hugging Face.

    Raises:
        UsageError: if it holds none that can be served.
    """
    path = os.path.join(preset, "task.json")
    if os.path.isfile(path):
        name = files.read_json(path)["registered_name"].partition(">")[2]
        found = getattr(deberta_tf, name, None)
    else:
        path = os.path.join(preset, "config.json")
        config = files.read_json(path) if os.path.isfile(path) else {}
        (name,) = config.get("architectures") or ["a backbone"]
        found = next((one for end, one in _CLASSES.items() if name.endswith(end)), None)
    if found is None:
        raise files.UsageError(f"--preset {preset} holds {name}: nothing is served")
    return found


def parse(argv):
    parser = files.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", required=True, help="folder of a fine-tuned task")
    parser.add_argument(
        "--output", required=True, help="folder of served versions, made if missing"
    )
    parser.add_argument(
        "--version", type=int, default=1, help="number of the version's own folder"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    files.run_command(main)
