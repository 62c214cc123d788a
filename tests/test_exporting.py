"""What an exported model passes on: the model that was fetched, and nothing else that lies in its directory."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from neuronrank.checkpoint import open_model
from neuronrank.cli import main
from neuronrank.errors import MismatchError
from neuronrank.model_files import files_to_copy
from neuronrank.oneshot.execution import _measured
from neuronrank.verifying import verify
from tests.pruned import Pruner, header_of, make_model
from tests.test_pruning import NEURONS, with_neurons


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory) -> Path:
    """A base model, and a mask that leaves embeddings, norms and attention as they are."""
    directory = tmp_path_factory.mktemp("made")
    model = make_model(directory / "base", tiny_model)
    with_neurons(Pruner(model, {}, header_of(model))).file(directory / "mask.safetensors", **NEURONS, attention=False)
    return directory


@pytest.fixture
def place(made, tmp_path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "made"))


def export(place: Path, *options: str):
    command = ["export", "--model", str(place / "base"), "--mask", str(place / "mask.safetensors")]
    return CliRunner().invoke(main, [*command, "--out", str(place / "out"), *options])


def faults(path: Path) -> list[str]:
    return [finding.line() for finding in verify([path]) if finding.is_fault]


def shard_of(base: Path, name: str) -> tuple[Path, dict]:
    """Return the shard that holds a tensor, and all tensors in it."""
    ((path, tensors),) = (
        (path, tensors) for path in base.glob("*.safetensors") if name in (tensors := load_file(path))
    )
    return path, tensors


@pytest.mark.parametrize("options", [(), ("--compact",)])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_a_weight_that_changed_is_not_passed_on_though_no_mask_is_for_it(place, name, options):
    path, tensors = shard_of(place / "base", name)
    tensors[name].view(-1)[3] += 0.5
    save_file(tensors, path, metadata={"format": "pt"})
    done = export(place, *options)
    assert done.exit_code == 1
    assert f"{name}: sha256 is" in done.output
    assert not (place / "out").exists()


@pytest.mark.parametrize("changed", [lambda w: w.reshape(24, 64), lambda w: w.view(torch.int32).view(torch.int64)])
def test_a_weight_of_the_same_bytes_but_another_shape_or_type_is_not_passed_on(place, changed):
    path, tensors = shard_of(place / "base", "model.embed_tokens.weight")
    tensors["model.embed_tokens.weight"] = changed(tensors["model.embed_tokens.weight"])
    save_file(tensors, path, metadata={"format": "pt"})
    done = export(place)
    assert done.exit_code == 1
    assert "model.json says float32 of [64, 24]" in done.output
    assert len(faults(place / "base")) == 1


@pytest.mark.parametrize("options", [(), ("--compact",)])
def test_a_tensor_that_is_gone_or_new_is_not_passed_on(place, options):
    path, tensors = shard_of(place / "base", "model.norm.weight")
    save_file({**tensors, "more": tensors["model.norm.weight"].clone()}, path, metadata={"format": "pt"})
    done = export(place, *options)
    assert (done.exit_code, "more: sha256 is" in done.output) == (1, True)
    save_file({name: t for name, t in tensors.items() if name != "model.norm.weight"}, path, metadata={"format": "pt"})
    done = export(place, *options)
    assert (done.exit_code, "has no tensor 'model.norm.weight'" in done.output) == (1, True)


@pytest.mark.parametrize("options", [(), ("--compact",)])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_changed_is_not_passed_on(place, name, options):
    path = place / "base" / name
    path.write_text(path.read_text() + "\n")
    done = export(place, *options)
    assert done.exit_code == 1
    assert "base: tokenizer is" in done.output
    assert not (place / "out").exists()


def test_a_tokenizer_that_changed_answers_no_tasks(project, tiny_model, tmp_path, monkeypatch):
    from neuronrank.files import read_json, write_sealed_json

    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    description = read_json(project.artifacts / "model/model.json", "x")
    write_sealed_json(project.artifacts / "model/model.json", {**description, "weights": {"path": str(copy)}})
    (copy / "added_tokens.json").write_text('{"cat": 3}')
    monkeypatch.setattr("stages.eval.load_tasks", lambda _params: {"tasks": {"any": None}})
    done = project.eval()
    assert done.exit_code == 1
    assert f"{copy}: tokenizer is" in done.output
    with pytest.raises(MismatchError, match="tokenizer is"):
        _measured(open_model(project.artifacts / "model"), None, None, False, ({"tasks": {"any": None}}, None))


def test_only_files_that_belong_to_a_model_are_passed_on(place, tmp_path):
    base = place / "base"
    (tmp_path / "secret").write_text("nobody else's")
    for name in ("notes.txt", "README.exe", "id_rsa"):
        (base / name).symlink_to(tmp_path / "secret")
    for name in ("modeling_mine.py", "adapter_config.json", "training_args.bin", "other.gguf", ".env"):
        (base / name).write_text("{}")
    for name in ("README.md", "LICENSE", "chat_template.jinja"):
        (base / name).write_text(name)
    os.mkfifo(base / "NOTICE")
    assert export(place).exit_code == 0
    written = {path.name for path in (place / "out").iterdir()}
    index = "model.safetensors.index.json"
    beside = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    about = {"README.md", "LICENSE", "chat_template.jinja"}
    shards = {path.name for path in base.glob("*.safetensors")}
    assert written == {index, *beside, *about, *shards, "neuronrank.json"}
    for name in beside:
        assert (place / "out" / name).read_bytes() == (base / name).read_bytes()


@pytest.mark.parametrize("name", ["README.md", "generation_config.json", "chat_template.jinja"])
def test_no_file_from_elsewhere_is_passed_on_under_a_known_name(place, tmp_path, name):
    (tmp_path / "secret").write_text("{}")
    (place / "base" / name).unlink(missing_ok=True)
    (place / "base" / name).symlink_to(tmp_path / "secret")
    done = export(place)
    assert done.exit_code == 1
    assert f"{name}: is a link to {tmp_path / 'secret'}, which is no file of this model" in done.output
    assert not (place / "out").exists()


@pytest.mark.parametrize("store", ["../../blobs/{number}", "../../cache/{number:02x}/{number}"])  # the hub's; DVC's
def test_the_links_of_a_cache_are_followed(made, tmp_path, store):
    snapshot = tmp_path / "model/snapshots/a"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted((made / "base").iterdir())):
        kept = snapshot / store.format(number=number)
        kept.resolve().parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, kept.resolve())
        (snapshot / path.name).symlink_to(store.format(number=number))
    expected = {path.name for path in files_to_copy(made / "base")}
    assert {"config.json", "generation_config.json", "tokenizer.json"} < expected
    assert {path.name for path in files_to_copy(snapshot)} == expected


def test_every_file_or_link_that_the_export_did_not_write_is_told(place, tmp_path):
    """A library that loads the model may load any of them."""
    assert export(place).exit_code == 0
    out = place / "out"
    assert not faults(out)
    (out / "kept").mkdir()
    for name in ("adapter_config.json", "added_tokens.json", "modeling_mine.py", "kept/model.bin", ".hidden"):
        (out / name).write_text("{}")
        assert [f"{name}: a file that the export did not write" in line for line in faults(out)] == [True]
        (out / name).unlink()
    for name, target in (("to-a-file", "/etc/hostname"), ("to-a-folder", tmp_path), ("to-nothing", tmp_path / "none")):
        (out / name).symlink_to(target)
        assert [f"{name}: a link that the export did not write" in line for line in faults(out)] == [True]
        (out / name).unlink()
    listed = out / "tokenizer.json"
    listed.unlink()
    os.mkfifo(listed)
    assert [f"{listed}: is no file, although neuronrank.json lists it" in line for line in faults(out)] == [True]
