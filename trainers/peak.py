"""How much of a chip's arithmetic a training uses."""

import os

import tensorflow as tf

# Dense products a second in bfloat16 (V100: float16), in 10^12 operations, of what one
# replica runs on: a chip, of TPU v2 and v3 one of two cores. From the data sheets of
# NVIDIA and the pages of Google Cloud on system architecture.
PEAKS = {
    "H100": 989.0,
    "A100": 312.0,
    "V100": 125.0,
    "v2": 22.5,
    "v3": 61.5,
    "v4": 275.0,
    "v5litepod": 197.0,
    "v5p": 459.0,
    "v6e": 918.0,
}


def peak_operations(config):
    """Operations a second that a replica could do; None where that is not known.

    Args:
        config: `RunConfig`. The peaks are those of its mixed precisions.
    """
    if config.precision == "float32":
        return None
    # TPU VMs tell "v5litepod-8" and so on.
    name = os.environ.get("TPU_ACCELERATOR_TYPE", "") if config.tpu else _gpu_name()
    found = [peak for chip, peak in PEAKS.items() if _is_named(chip, name)]
    return found[0] * 1e12 if found else None


def operations_per_token(task, sequence_length):
    """Operations of a training step for each token: forward, and twice that backward.

    6 for each weight that multiplies every token, and the products of attention;
    neither tables nor what is computed a second time count.

    Source: Chowdhery et al. 2022 (PaLM, arXiv 2204.02311), appendix B.
    """
    networks = [task.backbone]
    if hasattr(task, "generator"):
        networks.append(task.generator.backbone)
    total = 0
    for network in networks:
        weights = sum(block.count_params() for block in network.encoder.blocks)
        width = network.num_heads * network.head_dim
        attention = (2 + len(network.position_terms)) * width * sequence_length
        total += 6 * weights + 6 * network.num_layers * attention
    return total


def _is_named(chip, name):
    return name.startswith(f"{chip}-") or f" {chip}" in name


def _gpu_name():
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return ""
    details = tf.config.experimental.get_device_details(gpus[0])
    return f" {details.get('device_name', '')}"
