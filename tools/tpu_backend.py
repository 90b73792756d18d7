"""Compiles an HLO module for a TPU that is not there, by libtpu.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python tools/tpu_backend.py step.pb v5e:1x1

Prints memory, flops and bytes as JSON, and writes the optimised module's text beside
the file. `tools.tpu_compile` calls it, in an environment of its own
(requirements-tpu-check.txt) without TensorFlow and this project. One process at a
time: libtpu holds a lock.
"""

import json
import re
import sys
import time

import jax.experimental.topologies
import numpy as np
from jax._src import compiler
from jax._src.interpreters import mlir
from jaxlib import xla_client
from jaxlib.mlir import ir

_COPY = re.compile(
    r'"?mhlo\.copy"?[\s(]*(%[\w#]+)\)? : (?:\(tensor<[^>]*>\) -> )?(tensor<[^>]*>)'
)


def main(path, *topology):
    began = time.perf_counter()
    with open(path, "rb") as file:
        compiled = compile_module(file.read(), *topology)
    report = {"seconds": time.perf_counter() - began, **describe(compiled)}
    with open(f"{path}.txt", "w", encoding="utf-8") as file:
        file.write(compiled.hlo_modules()[0].to_string())
    print(json.dumps(report))


def compile_module(serialized, topology, chip_config=None):
    """The executable for one device of a topology.

    Args:
        serialized: bytes, an `HloModuleProto`.
        topology: str, such as "v5e:1x1".
        chip_config: str, "megacore" where both cores of a chip are to be one device;
            None: the topology's default.
    """
    config = {} if chip_config is None else {"chip_config_name": chip_config}
    found = jax.experimental.topologies.get_topology_desc(
        platform="tpu", topology_name=topology, **config
    )
    devices = found.devices[:1]
    client = devices[0].client
    text = xla_client._xla.mlir.xla_computation_to_mlir_module(
        xla_client.XlaComputation(serialized)
    )
    # TensorFlow copies what it assigns to a variable; the compiler takes no such copy.
    text = _COPY.sub(r"stablehlo.reshape \1 : (\2) -> \2", text)
    with mlir.make_ir_context():
        module = ir.Module.parse(text)
    options = compiler.get_compile_options(
        num_replicas=1,
        num_partitions=1,
        device_assignment=np.array([[devices[0].id]]),
        backend=client,
    )
    return client.compile(module, xla_client.DeviceList(tuple(devices)), options)


def describe(compiled):
    """Memory in bytes, flops and bytes moved."""
    memory = compiled.get_compiled_memory_stats()
    costs = compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "flops": costs.get("flops"),
        "bytes": costs.get("bytes accessed"),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
