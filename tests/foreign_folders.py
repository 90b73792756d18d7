"""Small folders in the layouts of Hugging Face and Microsoft, to test with."""

import json
import shutil

import numpy as np
import safetensors.numpy


def read_folder(folder):
    """(config, tensors) of a folder with one safetensors file."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return config, safetensors.numpy.load_file(folder / "model.safetensors")


def write_folder(folder, config, tensors):
    """Writes them; returns the folder as a str."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return str(folder)


def write_shards(folder, config, tensors, count=3):
    """The same in shards with an index."""
    write_folder(folder, config, {})
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, part in enumerate(np.array_split(sorted(tensors), count)):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        shard = {str(name): tensors[str(name)] for name in part}
        safetensors.numpy.save_file(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index, "utf-8")
    return str(folder)


def with_head(source, folder, head, **config):
    """A golden case with the tensors of another head in the place of its own."""
    old, tensors = read_folder(source)
    new = safetensors.numpy.load_file(source / f"head_{head}.safetensors")
    heads = ("pooler.", "classifier.", "lm_predictions.")
    body = {k: v for k, v in tensors.items() if not k.startswith(heads)}
    return write_folder(folder, {**old, **config}, {**body, **new})


def cache_hub_repository(cache, handle, folder, monkeypatch):
    """Puts a folder where huggingface_hub keeps downloads."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / ("models--" + handle.replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
