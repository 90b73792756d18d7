"""tools/tpu_compile.py: the training step as a TPU's compiler sees it."""

import json
import os
import pathlib
import re
import subprocess
import types

import numpy as np
import pytest
import tensorflow as tf

from deberta_tf.files import UsageError
from tools import hlo_text, tpu_compile, tpu_report, tpu_step

TPU_PYTHON = pathlib.Path(__file__).parents[1] / ".venv-tpu" / "bin" / "python"
SMALL = ["--preset=deberta_v3_xsmall", "--num_layers=1", f"--tpu_python={TPU_PYTHON}"]


def options_of(**settings):
    settings = {"batch_size": 8, "sequence_length": 128, "sift": False, **settings}
    return types.SimpleNamespace(**settings)


def operation(kind, name, elements, cycles=None, times=1):
    return hlo_text.Operation(
        kind, "x.1", name, elements, 2 * elements, cycles, times, fused=False
    )


def test_variables_are_made_without_their_numbers():
    with tf.variable_creator_scope(tpu_step.without_memory):
        made = tf.Variable(lambda: tf.ones([2, 3000]))
        small = tf.Variable(tf.ones([3]))
    assert (made.shape, made.dtype) == ((2, 3000), tf.float32)
    np.testing.assert_array_equal(small, np.ones(3))


@pytest.mark.parametrize(
    ("objective", "sift"),
    [
        *((name, False) for name in tpu_step.OBJECTIVES if name != "replaced_token"),
        pytest.param("classification", True, marks=pytest.mark.slow),
        pytest.param("replaced_token", False, marks=pytest.mark.slow),
    ],
)
def test_the_step_of_each_objective_becomes_a_module(objective, sift):
    options = options_of(
        preset="deberta_v3_xsmall",
        num_layers=1,
        objective=objective,
        batch_size=2,
        sequence_length=16,
        optimizer="adamw",
        precision="mixed_bfloat16",
        attention_form="auto",
        dropout=None,
        gradient_checkpointing=False,
        scan_layers=False,
        sift=sift,
    )
    task = tpu_step.make_task(options)
    module = tpu_step.serialized_step(task, options)
    # Where TensorFlow made its operations is in it.
    assert re.search(rb"coder(_\d+)?/block_0", module)
    assert b"gradient_tape/" in module
    # The three passes of scale-invariant fine-tuning, and its noise.
    passes = set(re.findall(rb"deberta_text_classifier\w*(?=/encoder)", module))
    if objective == "classification":
        assert len(passes) == (3 if sift else 1)
    assert (b"stateless_random_normal" in module) == sift


@pytest.mark.parametrize(("length", "places"), [(128, 20), (512, 80), (16, 10)])
def test_a_batch_has_the_places_of_the_preprocessor(length, places):
    options = options_of(objective="masked_lm", sequence_length=length)
    inputs, labels, weights = tpu_step.make_batch(options)
    assert inputs["mask_positions"].shape == labels.shape == (8, places)
    assert weights.shape == (8, places)


def test_operations_over_scores_are_found_and_origins_counted(capsys):
    rows = "deberta_3/encoder_2_1/block_0_1/attention_1/GatherV2"
    again = "deberta_3/encoder_2/block_11_1_1/attention_1/GatherV2"
    scores = "gradient_tape/deberta/encoder/block_3/attention/UnsortedSegmentSum"
    operations = [
        operation("gather", rows, 97_920),
        operation("gather", again, 97_920),
        operation("scatter", scores, 786_432),
        operation("gather", "deberta/embeddings/x", 10**8),
        operation("copy", f"{scores}/transpose", 786_432, times=6),
        operation("fusion", rows, 10, cycles=7_000),
    ]
    backbone = types.SimpleNamespace(num_heads=6, num_layers=12)
    task = types.SimpleNamespace(backbone=backbone, count_params=lambda: 7)
    options = options_of(
        objective="masked_lm", preset="some", chip="v5e", chip_memory=16 * 2**30
    )
    report = {
        "seconds": 1.0,
        "flops": 2e9,
        "bytes": 3e9,
        "arguments": 2**30,
        "temporaries": 2**29,
        "code": 2**29,
        "operations": operations,
    }
    assert tpu_report.tell(options, task, report) == 1
    told = capsys.readouterr().out
    assert "memory 2,048 MiB (12% of the chip)" in told
    assert "   2 x gather of deberta/encoder/block_*/attention/GatherV2" in told
    assert told.count("over scores:") == 1
    assert f"over scores: scatter of {scores}, 786,432" in told
    assert "7k cycles estimated" in told
    assert "7,000 cycles: fusion of deberta/encoder/block_*/attention" in told
    assert f"no estimate: 6 x copy of {tpu_report.origin(operations[4])}" in told
    assert "copies of scores: 0.5 a layer" in told
    del operations[2]
    assert tpu_report.tell(options, task, report) == 0


@pytest.mark.parametrize(
    ("kernels", "told"),
    [
        ((0, 0), "(of 3.0M and 2.0M cycles)"),
        ((2, 0), "; without 2 and 0 runs of kernels, which have no estimate"),
        ((2, 1), "; without 2 and 1 runs of kernels, which have no estimate"),
    ],
)
def test_ratios_tell_of_what_they_leave_out(kernels, told):
    reports = []
    for cycles, count in zip((3_000_000, 2_000_000), kernels, strict=True):
        kernel = operation("custom-call", "attention/pallas_call", 9)
        operations = [operation("fusion", "x", 9, cycles), *[kernel] * count]
        sizes = {"bytes": cycles, "flops": 7, "temporaries": 7}
        reports.append({**sizes, "operations": operations})
    line = tpu_report.compare(*reports)
    assert line.startswith("cycles 1.50, bytes 1.50, flops 1.00, temporaries 1.00 (of")
    assert line.endswith(told)


def test_a_batch_whose_tables_could_be_scores_is_refused():
    backbone = types.SimpleNamespace(num_heads=6, head_dim=64)
    # 20 places, or 128, against five times 64, the rows of overlapping windows.
    for objective, smallest in (("masked_lm", 17), ("classification", 3)):
        options = options_of(objective=objective, batch_size=smallest)
        tpu_report.check_size(backbone, options)
        options.batch_size -= 1
        with pytest.raises(UsageError, match="x 128 is too small to tell scores from"):
            tpu_report.check_size(backbone, options)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tpu_python=no/such/python"], "--tpu_python: no 'no/such/python'"),
        (["--batch_size=0"], "--batch_size must be at least 1; got 0"),
        (["--chip=v99"], "invalid choice: 'v99'"),
        (["--dropout=1", "--tpu_python=tools"], "and below 1; got 1.0"),
    ],
)
def test_wrong_flags_are_refused_by_name(flags, message):
    with pytest.raises(UsageError, match=message):
        tpu_compile.main(["--preset=deberta_v3_xsmall", *flags])


def test_the_reason_is_the_line_of_the_exception(tmp_path):
    told = "exceeds available HBM (15.75G)"
    program = tmp_path / "python"
    program.write_text(
        f"#!/bin/sh\necho 'Traceback' >&2; echo 'a.b.SomeError: {told}' >&2\n"
        "echo 'E0 x.cc:9] A: Error: no host' >&2\n"
        "echo 'See elsewhere for more details.' >&2; exit 1\n"
    )
    assert failure_of(program) == f"the compiler for v5e failed: a.b.SomeError: {told}"
    program.write_text("#!/bin/sh\necho 'A: Error: no host' >&2; kill -9 $$\n")
    assert failure_of(program) == "the compiler for v5e failed: ended by SIGKILL"


def failure_of(program):
    program.chmod(0o755)
    options = options_of(tpu_python=str(program), chip="v5e")
    with pytest.raises(UsageError) as failure:
        tpu_compile.compile_for(options, "step.pb")
    return str(failure.value)


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("form", "baseline", "most_copies"),
    # Of what a layer copies or transposes of the size of its scores.
    [("shift", "bert", 6), ("product", "bert", 3), ("fused", "fused_bert", 0)],
)
def test_the_forms_for_tpus_move_no_scores(form, baseline, most_copies, capsys):
    # The only block of a masked LM is the decoder's, which the kernel does not take.
    flags = ["--objective=classification", f"--attention_form={form}"]
    flags.append(f"--versus={baseline}")
    assert tpu_compile.main([*SMALL, *flags]) == 0
    told = capsys.readouterr().out
    assert "embeddings/token_embedding/GatherV2" in told
    assert "over scores" not in told
    copies = float(re.search(r"copies of scores: ([\d.]+) a layer", told)[1])
    assert copies <= most_copies
    ratios = re.search(rf"times those of {baseline}: cycles ([\d.]+), (.*)", told)
    if form == "fused":
        # Forward and backward, of one block.
        assert "without 2 and 2 runs of kernels" in ratios[2]
    else:
        assert float(ratios[1]) > 1


@pytest.mark.tpu
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
@pytest.mark.parametrize(
    "flags",
    [
        ["--length=128", "--dropout=0.1"],
        ["--length=512"],
        ["--length=384", "--terms", "c2p"],
        ["--length=256", "--terms", "p2c", "--head_dim=32"],
        ["--length=512", "--terms"],
        ["--length=2048", "--batch_size=2", "--dropout=0.1"],
        ["--length=1152", "--batch_size=1", "--num_heads=6", "--head_dim=128"],
    ],
)
def test_the_fused_kernel_compiles(chip, flags):
    command = [TPU_PYTHON, "tools/tpu_kernel.py", f"--chip={chip}", *flags]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["pass"] for one in reports] == ["forward", "backward"]
    # The scores stay within the chip's fast memory.
    assert all(one["temporaries"] < 2**20 for one in reports)
    assert 100 < reports[0]["bundles"] < reports[1]["bundles"]


@pytest.mark.tpu
def test_the_gather_form_moves_scores_and_fails(capsys):
    assert tpu_compile.main([*SMALL, "--attention_form=gather"]) == 1
    assert "over scores: gather of " in capsys.readouterr().out


@pytest.mark.tpu
def test_gradient_checkpointing_is_not_undone():
    """The compiler knows equal computations, and computes them once if it may."""
    reports = []
    for flags in ([], ["--gradient_checkpointing"]):
        flags = [*flags, "--objective=classification", "--num_layers=3"]
        options = tpu_compile.parse([*SMALL, *flags, "--batch_size=64"])
        task = tpu_step.make_task(options)
        reports.append(tpu_compile.compile_step(task, options))
    plain, kept = reports
    # A forward pass is a third of a step.
    assert 1.25 < kept["flops"] / plain["flops"] < 1.4
    assert kept["temporaries"] < 0.8 * plain["temporaries"]


@pytest.mark.tpu
def test_what_the_compiler_refuses_is_one_error(tmp_path):
    path = tmp_path / "step.pb"
    path.write_bytes(os.urandom(100))
    options = options_of(tpu_python=str(TPU_PYTHON), chip="v5e")
    with pytest.raises(UsageError, match="the compiler for v5e failed: "):
        tpu_compile.compile_for(options, str(path))
