"""Imports run one way: DESIGN 1."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("deberta_tf", "trainers", "tools")
FILES = sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))

# Modules of deberta_tf from the ground up; a module may import its own line and
# those above it.
LEVELS = [
    {
        "files",
        "private_hooks",
        "sentencepiece_resource",
        "byte_pair",
        "fill_mask",
        "offsets",
        "packing",
        "published",
        "served_weights",
        "submissions",
        "torch_files",
        "masking",
        "metrics",
        "optimization",
        "updates",
        "dense",
        "dropout",
        "causal",
        "token_prediction",
    },
    {
        "tokenizer_folders",
        "base_tokenizer",
        "tokenizers",
        "rows",
        "answer_metrics",
        "entity_metrics",
        "windows",
    },
    {"relative_position", "checkpoints", "distribution", "serving"},
    # They need jax, and are loaded by `fused_attention` where the kernel is asked for.
    {"fused_tiles"},
    {"fused_forward", "fused_backward"},
    {"fused_kernel"},
    {"position_terms", "fused_attention", "attention_masks"},
    {"attention_forms"},
    {"attention", "block_loop", "folded_positions"},
    {"embeddings", "convolution", "encoder", "backbone"},
    {"attention_terms"},
    {"heads", "task_heads"},
    {
        "base_task",
        "inference",
        "labelled_task",
        "masked_lm",
        "tasks",
        "preprocessing",
        "token_classifier",
        "question_answering",
        "multiple_choice",
        "entity_scorer",
        "span_classifier",
        "replaced_token",
        "replaced_token_training",
    },
    {"sift"},
]
# KerasHub asks the hub where a preset is a handle.
NOT_OURS = {"torch", "jax", "transformers", "onnxruntime", "flax", "huggingface_hub"}

FUSED = ("tiles", "forward", "backward", "kernel")

# Left out where it is not installed.
COMPARED_WITH = {
    **{f"deberta_tf.fused_{one}": {"jax"} for one in FUSED},
    "tools.tpu_kernel": {"jax"},
    "tools.encoders": {"torch", "transformers"},
    "tools.benchmark_serving": {"onnxruntime"},
    # Run in a process of its own by the benchmark, and only where they are installed.
    "tools.onnx_export": {"torch", "transformers"},
    "tools.tpu_backend": {"jax"},
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text("utf-8")) for path in FILES}


def imported(tree):
    """Names of the modules that the import statements below a node name."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "own modules are imported by their full names"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in full}
    return names


def is_own(name):
    return name.split(".")[0] in FOLDERS


def level(name):
    part = name.split(".")[1]
    return next((i for i, names in enumerate(LEVELS) if part in names), None)


LIBRARY = [name for name in MODULES if name.startswith("deberta_tf.")]


@pytest.mark.parametrize("name", LIBRARY)
def test_every_library_module_has_its_level(name):
    assert level(name) is not None, f"place {name} in LEVELS"


@pytest.mark.parametrize("name", LIBRARY)
def test_library_modules_import_their_level_or_lower(name):
    own = {other for other in imported(MODULES[name]) if is_own(other)}
    assert {other for other in own if other not in LIBRARY} == set()
    assert {other for other in own if level(other) > level(name)} == set()


def test_no_two_library_modules_import_each_other():
    graph = {name: imported(MODULES[name]) & set(LIBRARY) for name in LIBRARY}
    # Raises CycleError, which names the cycle.
    assert set(graphlib.TopologicalSorter(graph).static_order()) == set(LIBRARY)


@pytest.mark.parametrize(
    ("folder", "stranger"),
    [("trainers", "tools"), ("tools", "trainers")],
)
def test_trainers_and_tools_stay_apart(folder, stranger):
    inside = [name for name in MODULES if name.split(".")[0] == folder]
    strangers = {
        (name, other)
        for name in inside
        for other in imported(MODULES[name])
        if other.split(".")[0] == stranger
    }
    assert strangers == set()


@pytest.mark.parametrize("name", MODULES)
def test_own_modules_are_imported_at_the_top_of_a_file(name):
    statements = {
        statement
        for statement in ast.walk(MODULES[name])
        if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.Lambda)
    }
    inner = {other for statement in statements for other in imported(statement)}
    assert {other for other in inner if is_own(other)} == set()


@pytest.mark.parametrize("name", MODULES)
def test_nothing_imports_other_frameworks(name):
    packages = {other.split(".")[0] for other in imported(MODULES[name])}
    assert packages & NOT_OURS == COMPARED_WITH.get(name, set())
