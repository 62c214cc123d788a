"""A model that changed after it was fetched is not exported under its old name, and an export holds what it says."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from neuronrank.checkpoint import Checkpoint, describe_model, open_model
from neuronrank.cli import main
from neuronrank.errors import ArtifactError, MismatchError, SourceError
from neuronrank.files import read_json, write_sealed_json
from neuronrank.skeleton import Skeleton
from tests.forging import faults
from tests.imports import ROOT


@pytest.fixture
def base(tmp_path) -> Path:
    """A model of one layer, and a mask for it."""
    return shutil.copytree(ROOT / "tests/frozen/model-2", tmp_path / "base")


def export(base: Path, *more: str) -> Result:
    paths = ["--model", str(base / "model"), "--mask", str(base / "mask.safetensors"), "--out", str(base / "pruned")]
    return CliRunner().invoke(main, ["export", *paths, *more])


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_a_model_whose_unmasked_weight_changed_is_not_exported(base, name):
    path = base / "model/model.safetensors"
    tensors = load_file(path)
    tensors[name].flat[0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    result = export(base)
    assert result.exit_code == 1
    assert name in result.output
    assert not (base / "pruned").exists()


def test_a_model_whose_tokenizer_changed_is_not_exported(base):
    path = base / "model/tokenizer.json"
    path.write_text(path.read_text().replace('"e"', '"h"'))
    result = export(base)
    assert result.exit_code == 1
    assert "tokenizer is" in result.output
    assert not (base / "pruned").exists()


def test_an_export_takes_along_what_belongs_to_a_model_and_nothing_else(base, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (base / "model/notes.txt").symlink_to(tmp_path / "secret")
    for name in ("modeling_mine.py", "adapter_config.json", "pytorch_model.bin", "LICENSE", "chat_template.jinja"):
        (base / "model" / name).write_text("x")
    assert export(base).exit_code == 0
    names = sorted(path.name for path in (base / "pruned").iterdir())
    known = ["LICENSE", "chat_template.jinja", "config.json", "model.safetensors", "neuronrank.json", "tokenizer.json"]
    assert names == known
    assert not faults(base / "pruned")


@pytest.mark.parametrize("name", ["adapter_config.json", "added_tokens.json", "modeling_mine.py", "deep/x.txt"])
def test_a_file_that_the_export_did_not_write_is_a_fault(base, name):
    path = base / "export" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    assert [f"{name}: a file that the export did not write" in line for line in faults(base / "export")] == [True]


def test_a_link_in_an_export_is_a_fault(base, tmp_path):
    (base / "export/more").symlink_to(tmp_path)
    assert any("more: a file that the export did not write" in line for line in faults(base / "export"))


@pytest.mark.parametrize(
    ("name", "key"), [("config.json", "configuration_files"), ("tokenizer_config.json", "fast_tokenizer_files")]
)
def test_files_that_would_be_read_in_place_of_those_that_were_hashed_are_refused(base, name, key):
    path = base / "model" / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, key: ["other.4.0.0.json"]}))
    with pytest.raises(SourceError, match=f"{name}: has '{key}', which names other files"):
        describe_model(base / "model", {}, {})
    assert any(key in line for line in faults(base / "model"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"hub": "../../../x", "revision": "y"}, "names no model of the hub"),
        ({"hub": "a/b"}, "neither {} for weights beside it"),
        ({"path": "x", "hub": "a/b"}, "neither {} for weights beside it"),
        ({"path": 7}, "weights.path"),
    ],
)
def test_a_description_that_points_nowhere_is_refused(base, weights, message):
    path = base / "model/model.json"
    write_sealed_json(path, {**read_json(path, "x"), "weights": weights})
    with pytest.raises(ArtifactError, match=message):
        open_model(base / "model")
    assert faults(base / "model")


def test_more_layers_than_tensors_are_refused_before_they_are_built(base):
    path = base / "model/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 10**6}))
    with pytest.raises(MismatchError, match=r"config\.json has 1000000 layers, its weights are 11 tensors"):
        Skeleton(Checkpoint(base / "model"), torch.float32)
