"""The regression guard: ratios measured again, beside those that are committed.

    python -m tools.benchmark --check
    python -m tools.benchmark --record

Run before a release on a machine that does nothing else, not in the tests: a ratio to
another library in the same run says more than a time, and is still noisy.
"""

import argparse
import json
import os
import re
from importlib import metadata

from deberta_tf import files
from tools import (
    benchmark_encoder,
    benchmark_masked_lm,
    benchmark_sift,
    benchmark_startup,
    encoders,
    timing,
)

RECORDS = os.path.join("docs", "benchmarks.json")
# Of a ratio: medians of repeated runs on two shared cores differed by up to a tenth.
BAND = 0.15
LENGTHS = (128, 512)
IMPORT = "import deberta_tf / keras_hub"
SIFT = "step with SiFT / without"
MASKED_LM = "masked-LM step, 128 tokens / BERT of the same geometry"
PACKAGES = ("tensorflow", "keras", "keras-hub", "numpy")


def check(path=RECORDS, rounds=5):
    """Measures, and compares with what is recorded; the exit code, 1 where worse.

    Raises:
        UsageError: if there is no record, or it is of other measurements.
    """
    recorded = read(path)
    found = measure(rounds)
    if set(found) != set(recorded["ratios"]):
        raise files.UsageError(
            f"{path} holds other measurements than are made now: "
            f"{sorted(set(found) ^ set(recorded['ratios']))}; --record makes it anew"
        )
    for name, then in (recorded["machine"] | recorded["versions"]).items():
        now = (machine() | versions())[name]
        if now != then:
            print(f"{name} is {now}, was {then} when recorded")
    worse = [told(name, found[name], recorded) for name in found]
    return 1 if any(worse) else 0


def told(name, ratio, recorded):
    """Prints a comparison; whether it is worse than the band allows."""
    before, band = recorded["ratios"][name], recorded["band"]
    change = ratio / before - 1
    verdict = "as recorded"
    if change > band:
        verdict = "SLOWER"
    elif change < -band:
        verdict = "faster: record it"
    print(f"{name}: {ratio:.2f}, recorded {before:.2f} ({change:+.0%}): {verdict}")
    return change > band


def record(path=RECORDS, rounds=5):
    """Measures, and writes machine, versions and ratios."""
    contents = {
        "machine": machine(),
        "versions": versions(),
        "band": BAND,
        "ratios": {name: round(one, 3) for name, one in measure(rounds).items()},
    }
    files.atomic_write(path, json.dumps(contents, indent=2) + "\n")
    print(f"wrote {path}")


def read(path):
    """What is recorded.

    Raises:
        UsageError: if it can't be read, or is not what `record` writes.
    """
    try:
        with open(path, encoding="utf-8") as file:
            recorded = json.load(file)
    except (OSError, ValueError) as error:
        raise files.UsageError(f"{path} can't be read: {error}") from error
    missing = {"machine", "versions", "band", "ratios"} - set(recorded)
    if missing:
        raise files.UsageError(f"{path} lacks {sorted(missing)}")
    return recorded


def measurements():
    """Names of the encoder's, and of all."""
    encoder = {
        (which, length, other): (
            f"encoder, {which}, {length} tokens: deberta_tf / {other}"
        )
        for which in benchmark_encoder.PASSES
        for length in LENGTHS
        for other in encoders.TENSORFLOW_NAMES[1:]
    }
    return encoder, {*encoder.values(), IMPORT, SIFT, MASKED_LM}


def measure(rounds):
    """{what is compared: its ratio}; more is slower."""
    benchmark_encoder.limit_threads()
    names, _ = measurements()
    seconds = benchmark_startup.import_times(rounds)
    found = {
        IMPORT: timing.ratio(seconds, "deberta_tf", "keras_hub"),
    }
    settings = argparse.Namespace(
        num_layers=4,
        rounds=rounds,
        attention_form="auto",
        passes=benchmark_encoder.PASSES,
    )
    for length in LENGTHS:
        measured = benchmark_encoder.measure(
            length, "graph", settings, names=encoders.TENSORFLOW_NAMES
        )
        for which, seconds in measured.items():
            for other in encoders.TENSORFLOW_NAMES[1:]:
                found[names[which, length, other]] = timing.ratio(
                    seconds, encoders.OURS, other
                )
    settings = argparse.Namespace(
        precision="float32", batch_size=16, sequence_length=128, jit_compile=False
    )
    seconds = timing.in_turns(benchmark_sift.steps(settings), rounds, 0)
    found[SIFT] = timing.ratio(seconds, "SiFT", "plain")
    settings = argparse.Namespace(preset="deberta_v3_base", num_layers=4)
    seconds = benchmark_masked_lm.measure(
        benchmark_masked_lm.make_tasks(settings),
        benchmark_masked_lm.make_batch(8, 128),
        rounds,
    )
    found[MASKED_LM] = timing.ratio(
        seconds, benchmark_masked_lm.OURS, benchmark_masked_lm.BASELINE
    )
    return found


def machine():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = re.findall(r"^model name\s*: (.*)$", file.read(), re.M)
    return {"processor": models[0] if models else None, "cores": os.cpu_count()}


def versions():
    return {name: metadata.version(name) for name in PACKAGES}
