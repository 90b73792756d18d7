"""Parity with Hugging Face's own classes, on random models of random geometry.

Needs PyTorch and transformers: make test-reference.
"""

import collections

import numpy as np
import pytest

import deberta_tf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

transformers.utils.logging.disable_progress_bar()

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:The checkpoint has a masked-LM head, and no absolute:UserWarning"
    ),
]

VERSIONS = ("v1", "v2", "v3")
SEEDS = range(6)
# As in the golden cases: float32 against float32.
TOLERANCE = 2e-5
# Head -> (ours, theirs).
HEADS = {
    "masked_lm": (deberta_tf.DebertaMaskedLM, "ForMaskedLM"),
    "text": (deberta_tf.DebertaTextClassifier, "ForSequenceClassification"),
    "token": (deberta_tf.DebertaTokenClassifier, "ForTokenClassification"),
    "span": (deberta_tf.DebertaQuestionAnswering, "ForQuestionAnswering"),
    "choice": (deberta_tf.DebertaMultipleChoice, "ForMultipleChoice"),
}


@pytest.fixture(scope="module")
def differences():
    """Largest difference by what was compared; printed at the end."""
    largest = collections.defaultdict(float)
    yield largest
    print("\nlargest difference from transformers", transformers.__version__)
    for what, value in sorted(largest.items()):
        print(f"  {what:32} {value:.1e}")


def random_config(version, seed, head="Model"):
    """A small geometry of a version, drawn from its options."""
    draw = np.random.default_rng([seed, VERSIONS.index(version)])
    heads, width = int(draw.integers(1, 5)), int(draw.choice([4, 6, 8]))
    hidden = heads * width
    arguments = {
        "vocab_size": int(draw.integers(40, 90)),
        "hidden_size": hidden,
        "num_hidden_layers": int(draw.integers(1, 5)),
        "num_attention_heads": heads,
        "intermediate_size": int(draw.integers(8, 40)),
        "max_position_embeddings": 48,
        "max_relative_positions": int(draw.choice([-1, 20])),
        "relative_attention": True,
        "pos_att_type": [["c2p", "p2c"], ["c2p"], ["p2c"]][draw.integers(3)],
        "position_biased_input": bool(draw.integers(2)),
        "type_vocab_size": int(draw.choice([0, 2])),
        "layer_norm_eps": 1e-7,
        "num_labels": 2 if head == "ForQuestionAnswering" else 3,
        "pooler_hidden_size": hidden,
        "pooler_hidden_act": str(draw.choice(["gelu", "tanh"])),
        "legacy": bool(draw.integers(2)),
    }
    if version != "v1":
        arguments |= {
            "position_buckets": int(draw.choice([-1, 6, 8])),
            "share_att_key": bool(draw.integers(2)),
            "norm_rel_ebd": str(draw.choice(["none", "layer_norm"])),
        }
    if version == "v2":
        arguments |= {"conv_kernel_size": int(draw.choice([3, 5])), "conv_act": "gelu"}
    stem = "Deberta" if version == "v1" else "DebertaV2"
    config = getattr(transformers, f"{stem}Config")(**arguments)
    return config, getattr(transformers, stem + head)


def random_model(version, seed, head="Model"):
    """A model of theirs in which every tensor matters."""
    config, kind = random_config(version, seed, head)
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            near = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.normal_(near, 0.2)
        model.tie_weights()
    return model


def random_inputs(config, seed, lengths=(17, 11, 6), choices=None):
    """The same inputs in their names and in ours, and where tokens are."""
    draw = np.random.default_rng(seed)
    longest = max(lengths)
    token_ids = draw.integers(4, config.vocab_size, (len(lengths), longest))
    mask = (np.arange(longest) < np.array(lengths)[:, None]).astype("int64")
    segments = draw.integers(0, max(config.type_vocab_size, 1), token_ids.shape)
    arrays = {"token_ids": token_ids * mask, "padding_mask": mask}
    arrays["segment_ids"] = segments
    if choices:
        arrays = {k: np.stack([v] * choices, axis=1) for k, v in arrays.items()}
        arrays["token_ids"] = np.roll(arrays["token_ids"], 1, axis=0)
        arrays["padding_mask"] = np.roll(arrays["padding_mask"], 1, axis=0)
        arrays["token_ids"][:, 1:, 2] = 5
    theirs = dict(
        zip(
            ("input_ids", "attention_mask", "token_type_ids"),
            arrays.values(),
            strict=True,
        )
    )
    ours = {name: value.astype("int32") for name, value in arrays.items()}
    if not config.type_vocab_size:
        del ours["segment_ids"]
    theirs = {name: torch.tensor(value) for name, value in theirs.items()}
    return theirs, ours, arrays["padding_mask"] > 0


def states_of(model, inputs):
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states


def logits_of(model, inputs):
    with torch.no_grad():
        outputs = model(**inputs)
    if "start_logits" in outputs:
        return np.stack([outputs.start_logits, outputs.end_logits], axis=-1)
    return outputs.logits.numpy()


def largest(ours, theirs, counts=slice(None)):
    return float(np.abs(np.asarray(ours) - np.asarray(theirs))[counts].max())


def load_theirs(kind, folder):
    model, found = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    return model.eval()


@pytest.mark.parametrize("form", ["gather", "shift"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_hidden_states_agree(version, seed, form, tmp_path, differences):
    theirs = random_model(version, seed)
    theirs.save_pretrained(tmp_path)
    # As Hugging Face has it beyond the longest distance (SPEC 1.3).
    ours = deberta_tf.DebertaBackbone.from_preset(
        str(tmp_path), attention_form=form, clamp_distances=False
    )
    for lengths in ((17, 11, 6), (1, 1), (40, 31)):
        inputs, own_inputs, real = random_inputs(theirs.config, seed, lengths)
        pairs = zip(
            ours.hidden_states(own_inputs), states_of(theirs, inputs), strict=True
        )
        difference = max(largest(a, b, real) for a, b in pairs)
        what = f"{version} hidden states, {form}"
        differences[what] = max(differences[what], difference)
        assert difference <= TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_encoders_make_the_round_trip(version, seed, tmp_path):
    theirs = random_model(version, seed)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = deberta_tf.DebertaBackbone.from_preset(str(tmp_path / "theirs"))
    ours.save_to_huggingface(str(tmp_path / "ours"))
    again = load_theirs(type(theirs), tmp_path / "ours")
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    inputs, _, _ = random_inputs(theirs.config, seed)
    pairs = zip(states_of(theirs, inputs), states_of(again, inputs), strict=True)
    assert all(torch.equal(before, after) for before, after in pairs)


# Hugging Face has no DebertaForMultipleChoice.
PAIRS = [(v, head) for v in VERSIONS for head in HEADS if (v, head) != ("v1", "choice")]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("version", "head"), PAIRS)
def test_heads_agree_and_make_the_round_trip(
    version, seed, head, tmp_path, differences
):
    ours_class, suffix = HEADS[head]
    theirs = random_model(version, seed, suffix)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ours_class.from_preset(str(tmp_path / "theirs"))
    inputs, own_inputs, real = random_inputs(
        theirs.config, seed, choices=2 if head == "choice" else None
    )
    counts = slice(None) if head in ("text", "choice") else real
    expected = logits_of(theirs, inputs)
    difference = largest(ours(own_inputs), expected, counts)
    differences[f"{version} {head}"] = max(differences[f"{version} {head}"], difference)
    assert difference <= TOLERANCE
    ours.save_to_huggingface(str(tmp_path / "ours"))
    again = load_theirs(type(theirs), tmp_path / "ours")
    np.testing.assert_array_equal(logits_of(again, inputs), expected)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_files_of_torch_read_as_safetensors_do(tmp_path, zipped, dtype):
    theirs = random_model("v1", 1, "ForMaskedLM").to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "safe")
    folder = tmp_path / "bin"
    folder.mkdir()
    theirs.config.save_pretrained(folder)
    path = folder / "pytorch_model.bin"
    torch.save(theirs.state_dict(), path, _use_new_zipfile_serialization=zipped)
    safe = deberta_tf.DebertaMaskedLM.from_preset(str(tmp_path / "safe"))
    other = deberta_tf.DebertaMaskedLM.from_preset(str(folder))
    for weight, twin in zip(safe.weights, other.weights, strict=True):
        np.testing.assert_array_equal(weight, twin)


def test_shards_of_theirs_are_read(tmp_path):
    theirs = random_model("v3", 2)
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    theirs.save_pretrained(tmp_path / "whole")
    sharded, whole = (
        deberta_tf.DebertaBackbone.from_preset(str(tmp_path / name))
        for name in ("sharded", "whole")
    )
    for weight, twin in zip(sharded.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(weight, twin)


def test_shards_of_ours_are_read_by_them(tmp_path):
    theirs = random_model("v2", 3, "ForTokenClassification")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = deberta_tf.DebertaTokenClassifier.from_preset(str(tmp_path / "theirs"))
    ours.save_to_huggingface(str(tmp_path / "ours"), max_shard_size=1e-5)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    again = load_theirs(type(theirs), tmp_path / "ours")
    for name, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("D1_off_v3_mlm_emd", "DebertaV2ForMaskedLM"),
        ("D2_off_v1_mlm_emd", "DebertaForMaskedLM"),
        ("D3_off_v3_mlm_noemd", "DebertaV2ForMaskedLM"),
        ("D4_off_v2conv_mlm_emd", "DebertaV2ForMaskedLM"),
    ],
)
def test_official_masked_lms_leave_no_key_missing_or_unexpected(
    golden, tmp_path, case, kind
):
    ours = deberta_tf.DebertaMaskedLM.from_preset(str(golden / "golden" / case))
    ours.save_to_huggingface(str(tmp_path / "ours"))
    theirs = load_theirs(getattr(transformers, kind), tmp_path / "ours")
    # They know no enhanced mask decoder: they decode the last state.
    plain = deberta_tf.DebertaMaskedLM.from_preset(
        str(tmp_path / "ours"), enhanced_mask_decoder=False
    )
    inputs, own_inputs, real = random_inputs(theirs.config, 0)
    assert largest(plain(own_inputs), logits_of(theirs, inputs), real) <= TOLERANCE


def test_their_tokenizer_loads_from_our_folder(
    tmp_path, sentencepiece_proto, sentences
):
    tokenizer = deberta_tf.DebertaSentencePieceTokenizer(sentencepiece_proto)
    preprocessor = deberta_tf.DebertaTextClassifierPreprocessor(tokenizer, 48)
    backbone = deberta_tf.DebertaBackbone(104, 1, 2, 8, 8, bucket_size=8)
    classifier = deberta_tf.DebertaTextClassifier(
        backbone, 2, labels=["no", "yes"], preprocessor=preprocessor
    )
    classifier.save_to_huggingface(str(tmp_path / "ours"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert theirs.mask_token_id == tokenizer.mask_token_id
    packed = preprocessor(sentences[:20])
    for index, sentence in enumerate(sentences[:20]):
        count = int(np.sum(packed["padding_mask"][index]))
        assert theirs(sentence)["input_ids"] == list(packed["token_ids"][index, :count])
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours"
    )
    assert model.config.id2label == {0: "no", 1: "yes"}
