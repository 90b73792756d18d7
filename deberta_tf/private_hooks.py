"""What the library uses of others beyond their public interface.

A test fails by name when a version lacks one of them.
"""

# Module or class to names.
PRIVATE_HOOKS = {
    "keras.Model": ("_compute_loss", "_maybe_symbolic_build", "_symbolic_build"),
    "keras.layers.Layer": ("_flatten_layers",),
    "keras.optimizers.Optimizer": (
        "_all_reduce_sum_gradients",
        "_apply_weight_decay",
        "_get_variable_index",
        "_use_weight_decay",
        "_overwrite_model_variables_with_average_value",
    ),
    "keras_hub.tokenizers.SentencePieceTokenizer": ("_set_proto_tf",),
    "keras_hub.src.utils.preset_utils": ("check_file_exists", "get_file", "load_json"),
    "tensorflow.__internal__.distribute": ("strategy_supports_no_merge_call",),
    "tensorflow_text.python.ops.sentencepiece_tokenizer": (
        "_SentencepieceModelResource",
        "gen_sentencepiece_tokenizer",
    ),
}
