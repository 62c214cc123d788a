"""Where models and texts come from, with local files in the place of registries and hubs."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from neuronrank import downloads, sources
from neuronrank.checkpoint import describe_model, open_model
from neuronrank.downloads import Wheel, fetch_wheel, open_member
from neuronrank.errors import ArtifactError, MismatchError, NotFiniteError, ParamsError, SourceError
from neuronrank.files import sha256_file, write_sealed_json
from neuronrank.text_sources.wikipedia_articles import plain_text


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A package index in a folder, with one wheel in it; pip asks no other."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_weights/data.bin", b"payload")
        archive.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr("tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("NEURONRANK_CACHE_DIR", str(tmp_path / "cache"))
    return wheel


def test_a_wheel_is_downloaded_once_and_then_works_offline(registry):
    wheel = Wheel(package="tiny-weights", version="1.0", sha256=sha256_file(registry))
    first = fetch_wheel(wheel)
    registry.unlink()
    assert fetch_wheel(wheel) == first
    with open_member(first, "tiny_weights/data.bin") as file:
        assert file.read() == b"payload"
    with pytest.raises(SourceError, match="has no member 'nothing'"), open_member(first, "nothing"):
        pass


def test_a_wrong_checksum_is_refused_and_nothing_is_kept(registry, tmp_path):
    wheel = Wheel(package="tiny-weights", version="1.0", sha256="0" * 64)
    with pytest.raises(SourceError, match=f"sha256 is {sha256_file(registry)}, expected {'0' * 64}"):
        fetch_wheel(wheel)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_damaged_copy_in_the_cache_is_fetched_again(registry):
    wheel = Wheel(package="tiny-weights", version="1.0", sha256=sha256_file(registry))
    kept = fetch_wheel(wheel)
    kept.write_bytes(b"damaged")
    assert sha256_file(fetch_wheel(wheel)) == wheel.sha256


def test_a_damaged_copy_is_replaced_and_never_deleted_before(registry, monkeypatch):
    """Another process may have put the right one there since it was read."""
    wheel = Wheel(package="tiny-weights", version="1.0", sha256=sha256_file(registry))
    fetch_wheel(wheel).write_bytes(b"damaged")
    monkeypatch.setattr(downloads, "_keep", lambda _wheel, path: path.write_bytes(path.read_bytes() + b", and there"))
    assert fetch_wheel(wheel).read_bytes() == b"damaged, and there"


def test_a_package_that_does_not_exist_is_one_line(registry):
    with pytest.raises(SourceError, match=r"no-such-thing==1\.0: cannot be downloaded: .*No matching distribution"):
        fetch_wheel(Wheel(package="no-such-thing", version="1.0", sha256="0" * 64))


def text_documents(**section):
    source, options = sources.read_source("text_sources", section, "text.calibration")
    return list(source.documents(options))


def test_jsonl_txt_and_parquet_files(tmp_path, monkeypatch):
    from datasets import Dataset

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "b.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    (tmp_path / "a.txt").write_text("first line\n\nsecond paragraph")
    Dataset.from_dict({"body": ["three"]}).to_parquet(tmp_path / "c.parquet")
    for name, expected in {
        "b.jsonl": ["one", "two"],
        "a.txt": ["first line\n\nsecond paragraph"],
        "c.parquet": ["three"],
    }.items():
        found = text_documents(source="files", pattern=str(tmp_path / name), text_column="body")
        assert [document.text for document in found] == expected
    ids = [d.id for d in text_documents(source="files", pattern=str(tmp_path / "*.jsonl"), text_column="body")]
    assert ids == ["b.jsonl-0", "b.jsonl-1"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "missing.jsonl", "nothing matches"),
        ('{"title": "x"}\n', "x.jsonl", "no column 'text'; it has title"),
        ('{"text": \n', "x.jsonl", "x.jsonl: cannot be read"),
        ("x", "x.pdf", "ending '.pdf' is not one of"),
        ('{"text": "a"}\n{"text": null}\n', "x.jsonl", "row 1 holds None in 'text', expected a text"),
        ('{"text": ["a"]}\n', "x.jsonl", r"row 0 holds \['a'\] in 'text', expected a text"),
    ],
)
def test_unreadable_text_files_are_refused(tmp_path, content, name, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=message):
        text_documents(source="files", pattern=str(tmp_path / name))


REVISION = "0123456789abcdef0123456789abcdef01234567"


def test_hub_text_is_streamed_from_a_pinned_revision(tmp_path):
    # `datasets` takes a local folder where it takes a hub id
    (tmp_path / "part.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ["a", " ", "b", "c"]))
    section = {"source": "hub", "id": str(tmp_path), "revision": REVISION, "data_files": "part.jsonl"}
    assert [d.text for d in text_documents(**section, n_documents=2)] == ["a", "b"]
    shuffled = text_documents(**section, n_documents=3, seed=1)
    assert sorted(d.text for d in shuffled) == ["a", "b", "c"]
    with pytest.raises(SourceError, match="holds 3 documents, 4 were asked for"):
        text_documents(**section, n_documents=4)


@pytest.mark.parametrize("revision", ["main", "v1.0", ""])
def test_a_branch_is_no_pinned_revision(revision):
    with pytest.raises(ParamsError, match=r"text\.calibration\.revision"):
        text_documents(source="hub", id="x/y", revision=revision, n_documents=1)


def test_a_hub_model_is_pointed_to_and_found_again_offline(tiny_model, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repo_id, revision, **options):
        asked.append((repo_id, revision, options))
        return str(tiny_model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    section = {"source": "hub", "architecture": "llama", "id": "org/model", "revision": REVISION}
    source, options = sources.read_source("model_sources", section, "model")
    weights = source.materialise(options, tmp_path)
    assert weights.directory == tiny_model
    assert list(tmp_path.iterdir()) == []
    write_sealed_json(tmp_path / "model.json", describe_model(weights.directory, section, weights.pointer))
    assert open_model(tmp_path).weights_directory == tiny_model
    assert [call[:2] for call in asked] == [("org/model", REVISION)] * 2
    assert asked[1][2] == {"local_files_only": True}


def test_an_unreachable_hub_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    section = {"source": "hub", "architecture": "llama", "id": "org/model", "revision": REVISION}
    source, options = sources.read_source("model_sources", section, "model")
    with pytest.raises(SourceError, match=f"model org/model at {REVISION}: cannot be downloaded"):
        source.materialise(options, tmp_path)


@pytest.fixture
def copy(tiny_model, tmp_path) -> Path:
    """The tiny model in a folder that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def describe(directory):
    return describe_model(directory, {}, {})


def test_the_fingerprint_is_of_the_weights_not_of_files_or_names(copy, tiny_model, tmp_path):
    before = describe(tiny_model)
    tensors = {}
    for shard in sorted(copy.glob("model-*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (copy / "model.safetensors.index.json").unlink()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})  # one shard instead of several
    assert describe(copy)["fingerprint"] == before["fingerprint"]
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert describe(copy)["fingerprint"] != before["fingerprint"]


def test_the_hash_of_a_tensor_is_that_of_its_bytes(tiny_model):
    name = "model.layers.0.mlp.up_proj.weight"
    (tensor,) = [
        tensors[name] for shard in tiny_model.glob("model-*.safetensors") if name in (tensors := load_file(shard))
    ]
    entry = describe(tiny_model)["tensors"][name]
    assert entry == {
        "dtype": "float32",
        "shape": [40, 24],
        "sha256": hashlib.sha256(tensor.numpy().tobytes()).hexdigest(),
    }


def test_damaged_models_are_refused(copy):
    shard = sorted(copy.glob("model-*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(SourceError, match=f"{shard.name}: not a readable safetensors file"):
        describe(copy)
    shard.unlink()
    with pytest.raises(SourceError, match=f"{shard.name}: missing, although the index names it"):
        describe(copy)
    for path in [*copy.glob("*.safetensors"), copy / "model.safetensors.index.json"]:
        path.unlink()
    with pytest.raises(SourceError, match=r"found .*config\.json.*; expected model\.safetensors"):
        describe(copy)


def test_nan_weights_are_refused_when_fetched(copy):
    shard = sorted(copy.glob("model-*.safetensors"))[0]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[:2] = torch.tensor([torch.nan, torch.inf])
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(NotFiniteError, match=rf"{name}: 2 of \d+ weights are NaN or infinite"):
        describe(copy)


def test_weights_that_changed_after_fetching_are_refused(copy, tmp_path):
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    write_sealed_json(artifact / "model.json", describe_model(copy, {}, {"path": str(copy)}))
    shard = sorted(copy.glob("model-*.safetensors"))[-1]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    assert torch.equal(open_model(artifact).checkpoint().tensor(name), tensors[name])
    tensors[name].view(-1)[0] += 1
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(MismatchError, match=rf"{name}: sha256 is .*The weights in .* changed after they were fetched"):
        open_model(artifact).checkpoint().tensor(name)


@pytest.mark.parametrize(
    ("name", "key", "own", "other"),
    [
        ("config.json", "configuration_files", "config.json", "config.4.0.0.json"),
        ("tokenizer_config.json", "fast_tokenizer_files", "tokenizer.json", "tokenizer.4.0.0.json"),
    ],
)
def test_files_that_would_be_read_instead_of_the_fingerprinted_ones_are_refused(copy, name, key, own, other):
    before, path = describe(copy), copy / name
    settings = json.loads(path.read_text())
    shutil.copyfile(path, copy / other)  # transformers reads it, as its own version is later
    for files in ([other], [own, other], other, None):
        path.write_text(json.dumps({**settings, key: files}))
        with pytest.raises(SourceError, match=rf"{name}: its {key} let transformers read other files instead of {own}"):
            describe(copy)
    path.write_text(json.dumps({**settings, key: [own]}))
    assert describe(copy)["tensors"] == before["tensors"]


def test_files_named_after_fetching_are_not_read_either(copy):
    write_sealed_json(copy / "model.json", describe(copy))
    opened, whole = open_model(copy), (copy / "config.json").read_text()
    (copy / "config.json").write_text(json.dumps({**json.loads(whole), "configuration_files": ["config.4.0.0.json"]}))
    with pytest.raises(SourceError, match="configuration_files let transformers read other files"):
        open_model(copy)
    (copy / "config.json").write_text(whole)
    (copy / "tokenizer_config.json").write_text('{"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}')
    with pytest.raises(SourceError, match="fast_tokenizer_files let transformers read other files"):
        opened.require_its_tokenizer()


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer"])
@pytest.mark.parametrize("value", [10**6, 10**18, 1e6, -1, "many", True])
def test_more_layers_than_tensors_are_refused_before_a_model_is_built(copy, key, value):
    described = describe(copy)
    config = {**json.loads((copy / "config.json").read_text()), key: value}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=rf"config\.json: {key} is .*, but the checkpoint holds 20 tensors"):
        describe(copy)
    kept = {name: config[name] for name in (*described["config"], key)}
    write_sealed_json(copy / "model.json", {**described, "config": kept})
    with pytest.raises(SourceError, match=rf"config\.json: {key} is "):
        open_model(copy)


@pytest.mark.parametrize("value", ["NaN", "-Infinity", '"\\ud800"'])
def test_a_configuration_that_no_json_file_of_ours_can_hold_is_refused(copy, value):
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace("{", f'{{"more": {value},', 1))
    with pytest.raises(SourceError, match=r"config\.json: holds a number or a text that JSON cannot"):
        describe(copy)


def test_a_pointer_to_nowhere_is_refused(copy, tmp_path):
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    write_sealed_json(artifact / "model.json", describe_model(copy, {}, {"path": str(copy)}))
    shutil.rmtree(copy)
    with pytest.raises(SourceError, match=r"copy: not found, although .*model\.json points there"):
        open_model(artifact)
    with pytest.raises(ArtifactError, match=r"model\.json: not found. Run: dvc repro fetch@model"):
        open_model(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 something else", b"GGUF\x03\x00\x00\x00"])
def test_what_is_no_gguf_file_is_refused(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    section = {"source": "path", "architecture": "llama", "path": str(path)}
    source, options = sources.read_source("model_sources", section, "model")
    with pytest.raises(SourceError, match=r"model\.gguf: (starts with|transformers cannot convert it)"):
        source.materialise(options, tmp_path / "out")


def test_wiki_markup_becomes_prose():
    markup = (
        "{{Infobox|x=1}}\n'''Abc''' ({{lang|x}}) is a [[thing (x)|thing]].<ref>Not this.</ref>\n"
        "[[File:A.png|thumb|A caption with [[link]].]]\n== History ==\nIt [[began]] in 1900.\n"
        "{| class=wikitable\n|-\n| cell\n|}\n=== Later ===\nMore.\n== References ==\n* Gone\n[[Category:Things]]\n"
    )
    assert plain_text(markup) == ("Abc is a thing.\n\n== History ==\n\nIt began in 1900.\n\n=== Later ===\n\nMore.")


def test_unknown_sources_and_faults_are_told_together():
    section = {
        "calibration": {"source": "wikipedia", "split": "train"},
        "evaluation": {"news": {"source": "files", "patern": "x"}},
    }
    with pytest.raises(ParamsError) as caught:
        sources.read_texts(section, "text")
    message = str(caught.value)
    assert (
        "text.calibration.source: text_sources: unknown name 'wikipedia', did you mean 'wikipedia_articles'?" in message
    )
    assert "text.evaluation.news.patern: unknown key, did you mean 'pattern'?" in message
    assert "text.evaluation.news.pattern: missing, it has no default" in message
