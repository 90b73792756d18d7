"""Exports a fine-tuned preset as a SavedModel that answers raw inputs, and all that
TF Serving needs to serve it.

python -m tools.export_saved_model --preset PRESET_DIR --output SERVED_DIR

SERVED_DIR/VERSION is the model, with the requests that warm it up;
SERVED_DIR/deployment has the server's settings, a compose file, a manifest of
Kubernetes and the model card.
"""

import argparse
import os
import shlex
import sys

import deberta_tf
from deberta_tf import files
from deberta_tf.served_weights import WEIGHTS
from deberta_tf.serving import ServingExport
from tools import deployment, model_card, served_difference, warm_up

_CLASSES = {
    "ForSequenceClassification": deberta_tf.DebertaTextClassifier,
    "ForTokenClassification": deberta_tf.DebertaTokenClassifier,
    "ForQuestionAnswering": deberta_tf.DebertaQuestionAnswering,
    "ForMultipleChoice": deberta_tf.DebertaMultipleChoice,
    "ForMaskedLM": deberta_tf.DebertaMaskedLM,
}


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    if not os.path.isdir(arguments.preset):
        raise files.UsageError(f"--preset {arguments.preset!r} is not a folder")
    name = arguments.name or os.path.basename(os.path.abspath(arguments.output))
    check_output(arguments, name)
    lines = served_difference.read_lines(arguments.examples)
    # What other weights are compared with.
    task = served_class(arguments.preset).from_preset(arguments.preset, dtype="float32")
    task.require_preprocessor("serve raw inputs")
    examples = served_difference.make_examples(arguments.examples, lines, task)
    path = export(task, name, arguments, examples, told_command(argv))
    size = folder_size(path)
    names = getattr(task, "labels", None)
    classes = f", classes {names}" if names else ""
    print(f"exported {path}: {size / 1e6:.1f} MB, {type(task).__name__}{classes}")
    folder = os.path.join(arguments.output, deployment.FOLDER)
    print(f"deployment of {name!r}: {folder}")


def export(task, name, arguments, examples, command):
    """Writes the version and the deployment; neither is seen before both are whole.

    Returns:
        str, the folder of the version.
    """
    # What an export that was killed has left.
    files.recover_directory(os.path.join(arguments.output, str(arguments.version)))
    with deployment.replacement(arguments.output) as unfinished:

        def complete(folder):
            rows = deployment.batch_rows(task.preprocessor.sequence_length)
            warm_up.write(task, folder, name, rows)
            weights = told_weights(task, folder, arguments.weights, examples)
            print(f"weights {weights}", flush=True)
            texts = deployment_texts(task, folder, name, arguments, weights, command)
            deployment.write(unfinished, texts)

        return task.export_for_serving(
            arguments.output, arguments.version, arguments.weights, complete
        )


def told_command(argv):
    """The command for readers elsewhere, see `model_card.told`."""
    told = []
    for one in argv:
        flag, equals, value = (
            one.partition("=") if one.startswith("-") else ("", "", one)
        )
        told.append(flag + equals + model_card.told(value))
    return shlex.join(["python", "-m", "tools.export_saved_model", *told])


def check_output(arguments, name):
    """Refuses what could not be written or would not be served, before any work.

    Raises:
        UsageError: it says which.
    """
    deployment.check_name(name)
    output, version = arguments.output, arguments.version
    if version < 0:
        raise files.UsageError(f"--version must be at least 0. Received: {version}")
    if arguments.cpus < 1:
        raise files.UsageError(f"--cpus must be at least 1. Received: {arguments.cpus}")
    check_writable(output)
    others = os.listdir(output) if os.path.isdir(output) else []
    versions = [int(one) for one in others if one.isdecimal()]
    if version in versions:
        raise files.UsageError(
            f"{os.path.join(output, str(version))!r} exists: a served version is never "
            "overwritten. Pass another --version"
        )
    if versions and version < max(versions):
        raise files.UsageError(
            f"--version {version} would not be served: {output!r} has version "
            f"{max(versions)}, and the newest is"
        )
    deployment.check_replaceable(output)


def check_writable(output):
    """Refuses a folder that can't be made or written to.

    Raises:
        UsageError: it names what is in the way.
    """
    nearest = os.path.abspath(output)
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        raise files.UsageError(f"--output {output!r}: {nearest!r} is not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise files.UsageError(f"--output {output!r}: {nearest!r} can't be written to")


def told_weights(task, folder, weights, examples):
    """The dtype of the weights in `folder` and what it does to the answers, str."""
    if weights == "float32":
        return weights
    difference = served_difference.measure(task, folder, examples)
    return f"{weights}: {difference} as in float32"


def deployment_texts(task, folder, name, arguments, weights, command):
    """{name of a file: its text} of the deployment of a version in `folder`."""
    signatures = warm_up.read_signatures(folder)
    facts = deployment.make_deployment(
        task,
        signatures,
        name,
        arguments.version,
        arguments.cpus,
        folder_size(os.path.join(folder, "variables")),
    )
    consumer = warm_up.read_graph(folder).graph_def.versions.min_consumer
    card = model_card.make_card(
        task, signatures, facts, arguments.preset, weights, command, consumer
    )
    return {**deployment.render(facts), deployment.MODEL_CARD: card}


def folder_size(path):
    """Bytes of all files in a folder."""
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def served_class(preset):
    """The `task_class` of a folder.

    Raises:
        UsageError: if its tasks have nothing that can be served.
    """
    found = task_class(preset)
    if found.signatures is ServingExport.signatures:
        raise files.UsageError(f"{preset} holds {found.__name__}: nothing is served")
    return found


def task_class(preset):
    """The class of the task that a folder holds, of ours or of Hugging Face.

    Raises:
        UsageError: if it holds none.
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
        raise files.UsageError(f"{preset} holds {name}: nothing is served")
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
    parser.add_argument(
        "--name", help="model's name in requests; without it, that of the output folder"
    )
    parser.add_argument(
        "--cpus",
        type=int,
        default=os.cpu_count(),
        help="cores of a server that it is deployed on; without it as many as this "
        "machine has",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="float32",
        help="dtype of what is served; others than float32 are compared with it",
    )
    parser.add_argument(
        "--examples",
        help="JSON lines of inputs, as tools.serving_client takes them, to compare "
        "on; without them sentences of every length served",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    files.run_command(main)
