"""Geometries of the published models (SPEC 7), by the name of the model."""

_V1 = {
    "vocabulary_size": 50265,
    "bucket_size": 0,
    "share_position_projections": False,
    "key_bias": False,
    "normalize_relative_embeddings": False,
}
_V2 = {"vocabulary_size": 128100, "convolution_kernel_size": 3}
_V3 = {"vocabulary_size": 128100}


def _size(num_layers, num_heads, hidden_dim, **version):
    return {
        "num_layers": num_layers,
        "num_heads": num_heads,
        "hidden_dim": hidden_dim,
        "intermediate_dim": 4 * hidden_dim,
        **version,
    }


PUBLISHED_SIZES = {
    "deberta_base": _size(12, 12, 768, **_V1),
    "deberta_large": _size(24, 16, 1024, **_V1),
    "deberta_xlarge": _size(48, 16, 1024, **_V1),
    "deberta_v2_xlarge": _size(24, 24, 1536, **_V2),
    # The 1.5B model of the paper.
    "deberta_v2_xxlarge": _size(48, 24, 1536, **_V2),
    "deberta_v3_xsmall": _size(12, 6, 384, **_V3),
    "deberta_v3_small": _size(6, 12, 768, **_V3),
    "deberta_v3_base": _size(12, 12, 768, **_V3),
    "deberta_v3_large": _size(24, 16, 1024, **_V3),
    "mdeberta_v3_base": _size(12, 12, 768, vocabulary_size=251000),
    # The baseline of the paper's ablation: no relative positions.
    "bert_base": _size(
        12,
        12,
        768,
        vocabulary_size=30522,
        position_terms=(),
        absolute_position_input=True,
        num_segments=2,
        layer_norm_epsilon=1e-12,
    ),
}


def published_handle(name):
    """The handle of the repository that holds the weights of a published size.

    Raises:
        ValueError: if the size was not published with weights.
    """
    if name == "bert_base":
        raise ValueError(
            f"{name!r} is a geometry, without published weights of ours: pass "
            "load_weights=False for fresh ones"
        )
    return f"hf://microsoft/{name.replace('_', '-')}"
