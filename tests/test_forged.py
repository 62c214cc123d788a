"""Artifacts that were made to harm who reads them, and sealed, are refused before they do."""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numcodecs.blosc import compress
from zarr.codecs import BloscCodec

from neuronrank import losses, mask_store, open_statistics, score_store, windows
from neuronrank.cli import main
from neuronrank.errors import ArtifactError
from neuronrank.files import HEADER_KEY, read_header, read_sealed_json, write_sealed_json, write_tensors
from neuronrank.score_store import read_scores
from neuronrank.seals import BLANK, seal_tensor_file
from neuronrank.statistics_store import Statistics
from tests.forging import faults, relist, reseal, small_statistics

CHUNK = "taps.zarr/neuron/sum_sq/c/0/0/0"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return small_statistics(tmp_path_factory.mktemp("small"))


@pytest.fixture
def copy(small, tmp_path) -> Path:
    return shutil.copytree(small, tmp_path / "copy")


@pytest.mark.parametrize(
    "files",
    [
        {"/dev/zero": {"bytes": 0, "sha256": "0" * 64}},
        {"../secret": {"bytes": 6, "sha256": "0" * 64}},
        {"a\0b": {"bytes": 0, "sha256": "0" * 64}},
        {"manifest.json": {"bytes": 0, "sha256": 1.5}},
        {"manifest.json": {"bytes": -1, "sha256": "0" * 64}},
        {"manifest.json": 7},
        ["manifest.json"],
    ],
)
def test_files_that_an_unsound_manifest_lists_are_not_read_where_they_may_not_be(tmp_path, files):
    (tmp_path / "secret").write_text("secret")
    directory = tmp_path / "artifact"
    directory.mkdir()
    (directory / "manifest.json").write_text(json.dumps({"schema": "neuronrank.statistics/5", "files": files}))
    result = CliRunner().invoke(main, ["verify", str(directory)])
    assert result.exit_code == 1
    assert "holds 0 fields file_sha256" in result.output
    assert "2bb80d537b1d" not in result.output  # SHA-256 of the secret


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors", CHUNK])
def test_a_pipe_in_the_place_of_a_file_does_not_hold_the_reader(copy, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert any("it is no regular file" in line for line in faults(copy))


def test_a_link_to_a_directory_is_no_part_of_statistics(copy, tmp_path):
    (copy / "more").symlink_to(tmp_path)
    assert any("more: the manifest does not list this file" in line for line in faults(copy))


def test_a_seal_cannot_be_named_twice(small, tmp_path):
    """A second field by another spelling would give one artifact the identity of another."""
    other = "a" * 64
    path = tmp_path / "x.json"
    write_sealed_json(path, {"schema": "s/1", "value": {}})
    text = path.read_text()
    path.write_text(text.replace('"value"', f'"file_sha25\\u0036": "{other}",\n  "value"'))
    with pytest.raises(ArtifactError, match="stands twice in one object"):
        read_sealed_json(path, "s/1", "x")

    tensors = tmp_path / "x.safetensors"
    inner = f'{{"schema": "s/1", "file_sha256": "{BLANK}", "file_sha25\\u0036": "{other}"}}'
    _write_safetensors(tensors, {"__metadata__": {HEADER_KEY: inner}})
    seal_tensor_file(tensors)
    with pytest.raises(ArtifactError, match="stands twice in one object"):
        read_header(tensors, "s/1", "x")

    nested = f'{{"schema": "s/1", "file_sha25\\u0036": "{other}", "inside": {{"file_sha256": "{BLANK}"}}}}'
    _write_safetensors(tensors, {"__metadata__": {HEADER_KEY: nested}})
    seal_tensor_file(tensors)
    with pytest.raises(ArtifactError, match="beside its seal"):
        read_header(tensors, "s/1", "x")


def test_a_text_that_looks_like_a_seal_is_a_text(tmp_path):
    value = {"schema": "s/1", "file": {"file_sha256": "b" * 64}, "text": f'\n  "file_sha256": "{"c" * 64}" {{"'}
    write_sealed_json(tmp_path / "x.json", value)
    assert read_sealed_json(tmp_path / "x.json", "s/1", "x")["text"] == value["text"]
    write_tensors(tmp_path / "x.safetensors", {"a": np.zeros(1)}, {"schema": "s/1", "text": value["text"]})
    assert read_header(tmp_path / "x.safetensors", "s/1", "x")["text"] == value["text"]


@pytest.mark.parametrize("twice", [False, True])
def test_a_chunk_that_would_grow_is_refused_before_it_does(copy, monkeypatch, twice):
    async def fail(*_: object) -> None:
        raise AssertionError("was decompressed")

    monkeypatch.setattr(BloscCodec, "_decode_single", fail)
    bomb = compress(np.zeros(1 << 26, np.uint8), b"zstd", 9, 1)
    if twice:
        about = json.loads((copy / "taps.zarr/neuron/sum_sq/zarr.json").read_text())
        about["codecs"].append(next(codec for codec in about["codecs"] if codec["name"] == "blosc"))
        (copy / "taps.zarr/neuron/sum_sq/zarr.json").write_text(json.dumps(about))
        relist(copy, "taps.zarr/neuron/sum_sq/zarr.json")
        bomb = compress(np.frombuffer(bomb, np.uint8), b"zstd", 9, 0)
    (copy / CHUNK).write_bytes(bomb)
    relist(copy, CHUNK)
    message = "is no array of numbers in codecs" if twice else r"states 67108864 bytes .* its array has 36 a chunk"
    opened = Statistics(copy)
    for _ in range(2):  # what was refused once is not remembered as sound
        with pytest.raises(ArtifactError, match=message):
            opened.layer_values(0, "neuron", "sum_sq")


@pytest.mark.parametrize(
    ("dtype", "shape", "n_bytes"),
    [
        ("F32", [0, 2**61], 0),
        ("F32", [2**61, 0], 0),
        ("BF16", [3], 6),
        ("F8_E4M3", [3], 3),
        ("C64", [3], 24),
        ("F4", [3], 2),
    ],
)
def test_tensors_of_shapes_and_types_that_numpy_has_not_are_refused(copy, tmp_path, dtype, shape, n_bytes):
    for name in ("scores.safetensors", "losses.safetensors", "windows.safetensors"):
        frozen = Path(__file__).parent / "frozen" / ("statistics-5" if name.startswith("scores") else "model-2") / name
        path = tmp_path / name
        _add_tensor(frozen, path, dtype, shape, n_bytes)
        assert any(str(path) in line for line in faults(path))
    with pytest.raises(ArtifactError):
        read_scores(tmp_path / "scores.safetensors")
    _write_safetensors(
        copy / "weights.safetensors",
        {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, n_bytes]}},
        bytes(n_bytes),
    )
    relist(copy, "weights.safetensors")
    assert any("weights.safetensors" in line for line in faults(copy))


def test_a_manifest_of_very_many_faults_names_the_first_ones(copy):
    reseal(copy, lambda manifest: manifest["files"].update({f"../{n}": {} for n in range(20_000)}))
    with pytest.raises(ArtifactError, match="not a plain relative path") as caught:
        Statistics(copy)
    assert len(str(caught.value)) < 2000


def _add_tensor(source: Path, target: Path, dtype: str, shape: list[int], n_bytes: int) -> None:
    """Copy a file of ours with one more tensor, sealed anew."""
    content = source.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    metadata = json.loads(header["__metadata__"][HEADER_KEY]) | {"file_sha256": BLANK}
    header["__metadata__"] = {HEADER_KEY: json.dumps(metadata, sort_keys=True)}
    header["x"] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + n_bytes]}
    _write_safetensors(target, header, data + bytes(n_bytes))
    seal_tensor_file(target)


def _write_safetensors(path: Path, header: dict, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["collect"].update(propagation="sequential"), "`sequential` go together"),
        (lambda m: m["collect"].update(propagation="sequential", sequential={"parts": 1}), "collect.sequential"),
        (lambda m: m["calibration"].update(origins=7), "calibration.origins"),
        (lambda m: m["made_from"].update(model="0" * 64), "made_from.model is not model.fingerprint"),
        (lambda m: m.update(made_from={}), "made_from.model is not model.fingerprint"),
        (lambda m: m.update(versions={"torch": 2}), "versions.torch"),
    ],
)
def test_manifests_that_contradict_themselves_are_refused(copy, change, message):
    reseal(copy, change)
    assert any(message in line for line in faults(copy))
    with pytest.raises(ArtifactError, match=message):
        Statistics(copy)


@pytest.mark.parametrize("axes", [None, 3, ["layer"], ["layer", "document", 3], "abc"])
def test_axes_are_a_name_for_each(copy, axes):
    path = "taps.zarr/neuron/sum_sq/zarr.json"
    about = json.loads((copy / path).read_text())
    about["attributes"]["axes"] = axes
    (copy / path).write_text(json.dumps(about))
    relist(copy, path)
    with pytest.raises(ArtifactError, match="names axes"):
        Statistics(copy).layer_values(0, "neuron", "sum_sq")
    with pytest.raises(ArtifactError, match="names axes"):
        print(open_statistics(copy))


@pytest.mark.parametrize(
    "name", ["scores.safetensors", "mask.safetensors", "losses.safetensors", "windows.safetensors"]
)
def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path, monkeypatch, name):
    """Otherwise the header of one would come with the values of the other."""
    read: dict[str, Any] = {
        "scores.safetensors": (score_store, read_scores),
        "mask.safetensors": (mask_store, mask_store.MaskFile),
        "losses.safetensors": (losses, losses.read_losses),
        "windows.safetensors": (windows, windows.read_windows),
    }
    module, reader = read[name]
    path = tmp_path / name
    frozen = Path(__file__).parent / "frozen" / ("statistics-5" if name.startswith("scores") else "model-2") / name
    shutil.copyfile(frozen, path)
    reader(path)
    check = module.check_header

    def checked_and_replaced(*arguments: object) -> None:
        check(*arguments)
        shutil.copyfile(frozen, tmp_path / "new")
        (tmp_path / "new").rename(path)

    monkeypatch.setattr(module, "check_header", checked_and_replaced)
    with pytest.raises(ArtifactError, match="another file took its place while it was read"):
        reader(path)
