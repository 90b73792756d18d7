"""Compiles the fused attention's kernel for a TPU that is not there; counts bundles.

    JAX_PLATFORMS=cpu .venv-tpu/bin/python tools/tpu_kernel.py --chip v5e --length 512

A bundle is what the chip issues in a cycle: their number, times the steps of the grid,
is a lower bound of the cycles, since waiting is not in it. Only lengths of one tile
(512 and below) are straight code, whose bundles run once; longer ones are compiled, and
counted without their loops. Runs without TensorFlow, in the environment of
requirements-tpu-check.txt; one process at a time.
"""

import argparse
import glob
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import types

TOPOLOGIES = {"v5e": "v5e:1x1", "v6e": "v6e:1x1"}
PASSES = ("forward", "backward")
LIBRARY = pathlib.Path(__file__).parents[1] / "deberta_tf"
_BUNDLES = re.compile(r"total scheduled bundles:\s+(\d+)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", choices=TOPOLOGIES, default="v5e")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="a multiple of 128")
    parser.add_argument("--num_heads", type=int, default=12)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--terms", nargs="*", default=["c2p", "p2c"])
    parser.add_argument("--only", choices=PASSES, help="compile here, without a count")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(compile_pass(options)))
        return
    for one in PASSES:
        print(json.dumps(counted(one, options)), flush=True)


def counted(one, options):
    """What `compile_pass` tells of a pass, and its bundles, by the compiler's dump."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--only", one],
            env={**os.environ, "LIBTPU_INIT_ARGS": flags, "TPU_SKIP_MDS_QUERY": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{one} pass, exit code {done.returncode}: {done.stderr[-2000:]}")
        report = json.loads(done.stdout.strip().splitlines()[-1])
        pattern = "*disentangled_attention*schedule-analysis_final_bundles.txt"
        found = [pathlib.Path(p).read_text() for p in glob.glob(f"{folder}/{pattern}")]
    if not found:
        sys.exit(f"{one} pass: the compiler left no schedule of the kernel")
    bundles = max(int(_BUNDLES.search(text)[1]) for text in found)
    steps = options.batch_size * options.num_heads * options.head_dim // 128
    return {**report, "bundles": bundles, "steps": steps, "cycles": bundles * steps}


def compile_pass(options):
    """Compiles one pass; {"pass", "chip", "length", "temporaries", "arguments"}."""
    import jax
    import jax.experimental.topologies
    import jax.numpy as jnp
    import numpy as np

    kernel = load_kernel()
    batch, length = options.batch_size, options.length
    width = options.num_heads * options.head_dim
    settings = kernel.Settings(
        options.num_heads,
        options.head_dim,
        (options.head_dim * (1 + len(options.terms))) ** -0.5,
        options.dropout,
        tuple(options.terms),
    )
    found = jax.experimental.topologies.get_topology_desc(
        platform="tpu", topology_name=TOPOLOGIES[options.chip]
    )
    mesh = jax.sharding.Mesh(np.array(found.devices[:1]), ("x",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def made(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    rows = made((batch, length, width))
    tables = {term: made((2 * length, width)) for term in options.terms}
    keep, seed = made((batch, 1, length), jnp.float32), made((1, 2), jnp.int32)
    heads = (batch, settings.groups, settings.heads_a_group, length)
    arguments = [rows, rows, rows, tables, keep, seed]
    if options.only == "backward":
        arguments += [made(heads, jnp.float32), rows]
    function = getattr(kernel, options.only)
    compiled = jax.jit(lambda *a: function(*a, settings)).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    return {
        "pass": options.only,
        "chip": options.chip,
        "batch_size": batch,
        "length": length,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }


def load_kernel():
    """The kernel's module without its package's own, which needs TensorFlow."""
    package = types.ModuleType(LIBRARY.name)
    package.__path__ = [str(LIBRARY)]
    sys.modules[LIBRARY.name] = package
    return importlib.import_module(f"{LIBRARY.name}.fused_kernel")


if __name__ == "__main__":
    main()
