"""Compiles a training step for a TPU that is not there, and tells what it costs.

    python -m tools.tpu_compile --preset deberta_v3_xsmall --objective masked_lm \\
        --batch_size 32 --sequence_length 128 --chip v5e

It is the step that `fit` runs on one replica: forward and backward pass, clipping,
AdamW. What replicas do together, the sums of gradients, is not in that program. With
`--versus` the same step without position terms is compiled too, and the ratios told.
Fails (exit code 1) where a gather, scatter, sort or loop goes over attention scores.
"""

import json
import os
import re
import signal
import subprocess
import tempfile

from deberta_tf import files
from deberta_tf.attention_forms import ATTENTION_FORMS
from tools import hlo_text, tpu_report, tpu_step

# One chip of each, and how its cores are taken: the two of a v4 are one device, as
# TensorFlow and JAX have them (of a v5p that is the default, the others have one). And
# its memory in bytes: from the pages of Google Cloud on the architecture of each.
TOPOLOGIES = {
    "v4": ("v4:1x1x1", "megacore"),
    "v5e": ("v5e:1x1",),
    "v5p": ("v5p:1x1x1",),
    "v6e": ("v6e:1x1",),
}
MEMORY = {"v4": 32 * 2**30, "v5e": 16 * 2**30, "v5p": 95 * 2**30, "v6e": 32 * 2**30}
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception): ")


class OutOfMemory(files.UsageError):
    """A step needs more memory than the chip has; the message says how much."""


def main(argv=None):
    options = parse(argv)
    task = tpu_step.make_task(options)
    tpu_report.check_size(task.backbone, options)
    report = compile_step(task, options)
    code = tpu_report.tell(options, task, report)
    if options.versus:
        baseline = tpu_step.make_task(options, **tpu_step.BASELINES[options.versus])
        ratios = tpu_report.compare(report, compile_step(baseline, options))
        print(f"times those of {options.versus}: {ratios}")
    return code


def parse(argv):
    """The options of a compilation, checked.

    Raises:
        UsageError: if one of them is wrong.
    """
    parser = files.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", required=True, help="a published size")
    parser.add_argument("--objective", choices=tpu_step.OBJECTIVES, default="masked_lm")
    parser.add_argument("--batch_size", type=int, default=32, help="rows (%(default)s)")
    parser.add_argument(
        "--sequence_length", type=int, default=128, help="tokens (%(default)s)"
    )
    parser.add_argument("--optimizer", choices=tpu_step.OPTIMIZERS, default="adamw")
    parser.add_argument("--chip", choices=sorted(TOPOLOGIES), default="v5e")
    parser.add_argument(
        "--precision", default="mixed_bfloat16", help="Keras dtype policy (%(default)s)"
    )
    parser.add_argument(
        "--attention_form",
        choices=ATTENTION_FORMS,
        default="auto",
        help="as the trainers' flag (%(default)s)",
    )
    parser.add_argument(
        "--versus",
        choices=tuple(tpu_step.BASELINES),
        help="also the same step without position terms, and the ratios to it: with "
        "XLA's attention, or with the fused kernel's",
    )
    parser.add_argument(
        "--dropout",
        type=float,
        help="rate, of attention probabilities too; none: the preset's",
    )
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument(
        "--sift", action="store_true", help="the step of scale-invariant fine-tuning"
    )
    parser.add_argument("--scan_layers", action="store_true")
    parser.add_argument(
        "--num_layers", type=int, help="blocks, for a quick look; none: the preset's"
    )
    parser.add_argument(
        "--tpu_python",
        default=".venv-tpu/bin/python",
        help="Python of the environment of requirements-tpu-check.txt (%(default)s)",
    )
    options = parser.parse_args(argv)
    options.chip_memory = MEMORY[options.chip]
    _check(options)
    return options


def _check(options):
    for name in ("batch_size", "sequence_length", "num_layers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise files.UsageError(f"--{name} must be at least 1; got {value}")
    if options.dropout is not None and not 0 <= options.dropout < 1:
        raise files.UsageError(
            f"--dropout must be at least 0 and below 1; got {options.dropout}"
        )
    if options.sift and options.objective == "replaced_token":
        raise files.UsageError("--sift is for fine-tuning, not for replaced_token")
    if not os.path.exists(options.tpu_python):
        raise files.UsageError(
            f"--tpu_python: no {options.tpu_python!r}; make tpu-check makes it"
        )


def compile_step(task, options):
    """What `compile_for` tells of a training step.

    Raises:
        OutOfMemory: if the step needs more memory than the chip has.
        UsageError: if the compiler refuses it, with its reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "step.pb")
        with open(path, "wb") as file:
            file.write(tpu_step.serialized_step(task, options))
        return compile_for(options, path)


def compile_for(options, path):
    """What the compiler tells of a module; raises as `compile_step`.

    Args:
        options: as `parse` gives them.
        path: str. A file of an `HloModuleProto`; the optimised module's text is
            written beside it.

    Returns:
        dict of memory in bytes ("arguments", "outputs", "temporaries", "code"),
        "flops", "bytes" moved, "seconds" of compiling, and "operations", of
        `hlo_text.read_operations`.
    """
    program = os.path.join(os.path.dirname(__file__), "tpu_backend.py")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(
        [options.tpu_python, program, path, *TOPOLOGIES[options.chip]],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = _reason(done)
        kind = OutOfMemory if "HbmOom" in reason else files.UsageError
        raise kind(f"the compiler for {options.chip} failed: {reason}")
    report = json.loads(done.stdout.strip().splitlines()[-1])
    with open(f"{path}.txt", encoding="utf-8") as file:
        return {**report, "operations": hlo_text.read_operations(file.read())}


def _reason(done):
    """Why a program failed: the line of its exception, or the signal that ended it."""
    if done.returncode < 0:
        return f"ended by {signal.Signals(-done.returncode).name}"
    lines = done.stderr.strip().splitlines() or ["no reason was given"]
    # Links to more may follow it, and warnings stand before it.
    return next(filter(_EXCEPTION.match, lines[::-1]), lines[-1])


if __name__ == "__main__":
    files.run_command(main)
