"""What a compiled training step costs, told: memory, estimates, what goes over scores.

`operations` are those of `tools.hlo_text`.
"""

import collections
import re

from deberta_tf import files
from deberta_tf.masking import num_mask_positions
from deberta_tf.position_terms import BLOCK
from tools import hlo_text

COPIES = ("copy", "transpose")
# What has no estimate is named from this size on.
NOTEWORTHY = 2**16


def tell(options, task, report):
    """Prints a report; returns the exit code: 1 where scores are gathered."""
    operations = report["operations"]
    # What a step updates takes the place of what it was.
    peak = report["arguments"] + report["temporaries"] + report["code"]
    share = peak / options.chip_memory
    print(
        f"{options.objective}{' with SiFT' if options.sift else ''} of "
        f"{options.preset}, {task.count_params():,} parameters, "
        f"{options.batch_size} x {options.sequence_length}, on one {options.chip}\n"
        f"compiled in {report['seconds']:.0f} s; {report['flops'] / 1e9:,.1f} GFLOP, "
        f"{report['bytes'] / 1e9:,.2f} GB moved a step, "
        f"{hlo_text.estimated_cycles(operations) / 1e3:,.0f}k cycles estimated\n"
        f"memory {peak / 2**20:,.0f} MiB ({share:.0%} of the chip): state and batch "
        f"{report['arguments'] / 2**20:,.0f}, temporaries "
        f"{report['temporaries'] / 2**20:,.0f}, program {report['code'] / 2**20:,.0f}\n"
        "sums over replicas are not part of this program"
    )
    for (kind, origin), count in sorted(by_origin(operations).items()):
        print(f"{count:4d} x {kind} of {origin}")
    _tell_estimates(operations)
    scores = num_scores(task.backbone, options)
    found = over_scores(operations, scores)
    for one in found:
        print(f"over scores: {one.kind} of {one.operation}, {one.elements:,}")
    copies = copies_a_layer(operations, scores, task.backbone.num_layers)
    print(f"copies of scores: {copies:.1f} a layer")
    return 1 if found else 0


def _tell_estimates(operations):
    for one in hlo_text.dearest(operations):
        print(f"{one.all_cycles:12,} cycles: {one.kind} of {origin(one)}")
    unknown = hlo_text.without_estimate(operations, NOTEWORTHY)
    groups = collections.Counter()
    for one in unknown:
        groups[one.kind, origin(one), one.elements] += one.times
    for (kind, where, elements), count in groups.most_common():
        print(f"no estimate: {count} x {kind} of {where}, {elements:,} elements")


def compare(report, baseline):
    """The ratios of a step to a baseline's, as a line of text."""
    both = report, baseline
    own, other = (hlo_text.estimated_cycles(one["operations"]) for one in both)
    ratios = {"cycles": own / other}
    for name in ("bytes", "flops", "temporaries"):
        ratios[name] = report[name] / baseline[name]
    told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    told += f" (of {own / 1e6:,.1f}M and {other / 1e6:,.1f}M cycles)"
    kernels = [
        sum("pallas_call" in one.operation for one in report["operations"])
        for report in both
    ]
    if any(kernels):
        told += (
            f"; without {kernels[0]} and {kernels[1]} runs of kernels, which have no "
            "estimate"
        )
    return told


def by_origin(operations):
    """{(kind, TensorFlow operation and layer): count}; blocks are taken together."""
    return collections.Counter(
        (one.kind, origin(one)) for one in hlo_text.counted(operations)
    )


def origin(operation):
    """Where TensorFlow made an operation, any block's."""
    name = re.sub(r"block(_\d+)+", "block_*", operation.operation)
    # What is called a second time has a number more.
    return re.sub(r"(_\d+)+(?=/|$)", "", name) or "unknown"


def num_scores(backbone, options):
    """Attention scores of the layer that has the fewest: of masks, a query a place."""
    length = options.sequence_length
    queries = length
    if options.objective != "classification":
        queries = min(length, num_mask_positions(length))
    return options.batch_size * backbone.num_heads * queries * length


def check_size(backbone, options):
    """Refuses a batch that is so small that a table could be taken for scores.

    Raises:
        UsageError: if a layer has no more scores than there are elements in the rows
            of a table of positions.
    """
    width = backbone.num_heads * backbone.head_dim
    table = _gathered_rows(options.sequence_length) * width
    scores = num_scores(backbone, options)
    if scores <= table:
        raise files.UsageError(
            f"{options.batch_size} x {options.sequence_length} is too small to tell "
            f"scores from tables: {scores:,} against {table:,} elements"
        )


def _gathered_rows(length):
    """Rows of a table that any form gathers at most: windows of blocks overlap."""
    # "shift" takes four blocks, each with a window of its own and the whole length.
    block = min(BLOCK, length)
    blocks = -(-length // block)
    return max(5 * length, blocks * (blocks + 1) * block)


def over_scores(operations, scores):
    """Gathers and the like in attention that move as many elements as scores."""
    return [
        one
        for one in hlo_text.counted(operations)
        if "attention" in one.operation and one.elements >= scores
    ]


def copies_a_layer(operations, scores, num_layers):
    """How many times a layer copies as many elements of attention as scores."""
    copies = [
        one.times
        for one in hlo_text.counted(operations, COPIES)
        if not one.fused and "attention" in one.operation and one.elements >= scores
    ]
    return sum(copies) / num_layers
