"""Converts checkpoints: Hugging Face and Microsoft, presets of ours, KerasHub.

python -m tools.convert_checkpoint --input hf://microsoft/deberta-v3-base \\
    --to preset --output base
python -m tools.convert_checkpoint --input run/preset --to huggingface --output hub
"""

import argparse
import os
import time

import keras
import numpy as np

import deberta_tf
from deberta_tf import files
from deberta_tf.checkpoints import folders
from deberta_tf.tokenizer_folders import has_tokenizer
from deberta_tf.tokenizers import DebertaTokenizer

TASKS = {
    "backbone": deberta_tf.DebertaBackbone,
    "masked_lm": deberta_tf.DebertaMaskedLM,
    "replaced_token": deberta_tf.DebertaReplacedTokenDetection,
    "text_classifier": deberta_tf.DebertaTextClassifier,
    "token_classifier": deberta_tf.DebertaTokenClassifier,
    "question_answering": deberta_tf.DebertaQuestionAnswering,
    "multiple_choice": deberta_tf.DebertaMultipleChoice,
    "entity_scorer": deberta_tf.DebertaEntityScorer,
}
# How the names of Hugging Face's classes end.
_ARCHITECTURES = {
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "text_classifier",
    "ForTokenClassification": "token_classifier",
    "ForQuestionAnswering": "question_answering",
    "ForMultipleChoice": "multiple_choice",
}


def main(argv=None):
    arguments = parse(argv)
    check_output(arguments)
    task = arguments.task or find_task(arguments.input)
    if arguments.to == "keras_hub" and task != "backbone":
        print(f"KerasHub's class is an encoder: the head of the {task} is left out")
        task = "backbone"
    began = time.monotonic()
    # A preset is of the dtype of its variables; a folder may be of any.
    policy = None if arguments.to == "huggingface" else arguments.dtype
    model = TASKS[task].from_preset(arguments.input, dtype=policy)
    save(model, arguments)
    report(model, task, arguments.output, time.monotonic() - began)


def parse(argv):
    parser = files.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input",
        required=True,
        help="folder of Hugging Face or Microsoft, preset of ours or of KerasHub's "
        "DebertaV3Backbone, or handle (hf://owner/name)",
    )
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument(
        "--to", required=True, choices=("preset", "huggingface", "keras_hub")
    )
    parser.add_argument(
        "--task", choices=TASKS, help="what the input holds; by default it is told"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="of the weights written; by default float32",
    )
    return parser.parse_args(argv)


def check_output(arguments):
    """Refuses an output that would not be written, before any work."""
    if arguments.to == "keras_hub" and arguments.dtype is not None:
        raise files.UsageError("--dtype is not for --to keras_hub, which is float32")
    if "://" in arguments.output:
        raise files.UsageError(f"--output {arguments.output!r} must be a local folder")
    if os.path.realpath(arguments.output) == os.path.realpath(arguments.input):
        raise files.UsageError("--output must be another folder than --input")


def find_task(preset):
    """Which of `TASKS` a folder or handle holds.

    By its config where that names a class of Hugging Face, else by its tensors.
    """
    checkpoint = folders.open_checkpoint(preset)
    if checkpoint is None:
        return _task_of_preset(preset)
    for architecture in checkpoint.config.get("architectures") or ():
        for ending, task in _ARCHITECTURES.items():
            if architecture.endswith(ending):
                return task
    if checkpoint.holds("mask_predictions."):
        return "replaced_token" if folders.has_generator(preset) else "backbone"
    return _task_of_tensors(checkpoint)


def _task_of_preset(preset):
    path = folders.find_file(preset, "task.json")
    if path is None:
        return "backbone"
    name = files.read_json(path)["registered_name"]
    for task, kind in TASKS.items():
        if name == keras.saving.get_registered_name(kind):
            return task
    raise files.UsageError(f"{preset!r} holds a {name}, not a task of ours")


def _task_of_tensors(checkpoint):
    if checkpoint.holds("qa_outputs."):
        return "question_answering"
    rows = checkpoint.rows("classifier.weight")
    if rows and checkpoint.holds("pooler."):
        return "text_classifier"
    if rows:
        is_score = rows == 1 and checkpoint.holds("proj.")
        return "entity_scorer" if is_score else "token_classifier"
    return "masked_lm" if checkpoint.holds("lm_predictions.") else "backbone"


def save(model, arguments):
    """Writes the model, and the tokenizer where the input has one."""
    is_task = not isinstance(model, deberta_tf.DebertaBackbone)
    tokenizer = None
    if has_tokenizer(arguments.input):
        tokenizer = DebertaTokenizer.from_preset(arguments.input)
    if arguments.to == "keras_hub":
        model.save_to_keras_hub(arguments.output, tokenizer)
    elif arguments.to == "huggingface":
        model.save_to_huggingface(
            arguments.output, dtype=arguments.dtype, tokenizer=tokenizer
        )
    elif is_task and model.preprocessor is not None:
        model.save_to_preset(arguments.output)
    else:
        _save_preset(model, tokenizer, arguments.output)


def _save_preset(model, tokenizer, output):
    files.check_replaceable(output, files.PRESET_FILES.fullmatch)
    with files.atomic_directory(output) as temporary:
        model.save_to_preset(temporary)
        if tokenizer is not None:
            tokenizer.save_to_preset(temporary)


def report(model, task, output, seconds):
    """Prints what was written, and how fast."""
    sizes = [
        weight.value.dtype.size * np.prod(weight.shape) for weight in model.weights
    ]
    gigabytes = sum(sizes) / 1e9
    print(
        f"wrote {output}: {task}, {gigabytes:.3f} GB of weights in {seconds:.1f} s "
        f"({seconds / gigabytes:.1f} s/GB)"
    )


if __name__ == "__main__":
    files.run_command(main)
