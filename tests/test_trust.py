"""No change of an artifact goes unnoticed: `verify` tells it, and what reads it refuses it with an error of ours."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from neuronrank.checkpoint import open_model
from neuronrank.cli import main
from neuronrank.errors import ArtifactError, NeuronrankError, SourceError
from neuronrank.files import canonical_json, read_json, read_sealed_json, write_sealed_json, write_tensors
from neuronrank.findings import Checked
from neuronrank.losses import read_losses
from neuronrank.mask_store import MaskFile
from neuronrank.recipes import read_recipe
from neuronrank.safetensors_header import read_safetensors_header
from neuronrank.score_store import read_scores
from neuronrank.scores import compute_factors
from neuronrank.seals import check_tensor_file
from neuronrank.shards import shard_header
from neuronrank.statistics_store import Statistics
from neuronrank.verifying import _links, verify
from neuronrank.windows import read_windows
from tests.artifacts import module, statistics

N_SAMPLED = 60
"""Bytes tried of a file beside those of its header, drawn with a fixed seed."""


def faults(*paths: Path) -> list[str]:
    return [finding.line() for finding in verify(paths) if finding.is_fault]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Statistics of one layer of two modules, over three documents."""
    modules = [
        module("gate", "mlp", (3, 2), "mlp_in", "neuron", "row"),
        module("down", "mlp", (2, 3), "mlp_mid", "neuron", "column"),
    ]
    sums = {
        (tap, name): [[first + channel + document for channel in range(n)] for document in range(3)]
        for tap, n, first in (("mlp_in", 2, 1.0), ("mlp_mid", 3, 2.0), ("neuron", 3, 3.0))
        for name in ("sum_sq", "sum_abs")
    }
    vectors = {
        f"{entry['name']}.{axis}_{name}": np.ones(entry["shape"][axis == "column"])
        for entry in modules
        for axis in ("row", "column")
        for name in ("sum_abs", "sum_sq", "max_abs")
    }
    directory = tmp_path_factory.mktemp("small")
    statistics(directory, sums, modules, vectors)
    return directory / "artifact"


RECIPE = read_recipe({"attention": {"method": "none"}, "mlp": {"method": "wanda"}}, "recipes.test")


def read_all(directory: Path) -> None:
    """Score, and read every array that there is."""
    opened = Statistics(directory)
    compute_factors(opened, RECIPE)
    for path in opened.array_paths:
        opened.read(path)
    opened.all_weight_sums()


def test_every_byte_of_statistics_is_guarded(small, tmp_path):
    """Flipped one at a time: manifest, metadata of Zarr, chunks and vectors of the weights."""
    copy = shutil.copytree(small, tmp_path / "copy")
    assert not faults(copy)
    drawn = random.Random(1)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    assert len(files) > 20
    unread = {
        path for path in copy.glob("taps.zarr/*/zarr.json") if json.loads(path.read_text())["node_type"] == "group"
    }
    assert len(unread) == 3  # a tap's own description; arrays are opened by their whole path
    for path in files:
        whole = path.read_bytes()
        kept = set(range(0, len(whole), 97)) if path.name == "manifest.json" else set()
        places = kept | set(drawn.sample(range(len(whole)), min(len(whole), 12)))
        for place in sorted(places):
            changed = bytearray(whole)
            changed[place] ^= 1 << drawn.randrange(8)
            path.write_bytes(changed)
            assert faults(copy), (path, place)
            if path not in unread:
                with pytest.raises(NeuronrankError):
                    read_all(copy)
        path.write_bytes(whole)
    read_all(copy)
    assert not faults(copy)


def readers(project):
    """Each file that a stage reads, and how."""
    return {
        project.scores("hybrid"): read_scores,
        project.mask("wanda", "50pct"): lambda path: [MaskFile(path).keep(name) for name in MaskFile(path).weights],
        project.artifacts / "losses/dense.safetensors": read_losses,
        project.artifacts / "losses/wanda/50pct.safetensors": read_losses,
        project.artifacts / "tokens/calibration/windows.safetensors": read_windows,
        project.artifacts / "tokens/evaluation/wiki.safetensors": read_windows,
    }


def test_every_byte_of_scores_masks_losses_and_windows_is_guarded(finished_project, tmp_path):
    """Every byte of the first 200, a sample of the header and of the data; one bit each."""
    drawn = random.Random(2)
    for source, read in readers(finished_project).items():
        path = tmp_path / source.name
        whole = source.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little")
        places = {*range(200), *drawn.sample(range(header), N_SAMPLED), *range(header - 12, header)}
        places |= set(drawn.sample(range(header, len(whole)), min(N_SAMPLED, len(whole) - header))) | {len(whole) - 1}
        for place in sorted(places):
            changed = bytearray(whole)
            changed[place] ^= 1 << drawn.randrange(8)
            path.write_bytes(changed)
            assert faults(path), (source, place)
            with pytest.raises(NeuronrankError):
                read(path)
        path.write_bytes(whole)
        read(path)
        assert not faults(path)


@pytest.mark.parametrize("change", ["cut", "grown", "empty", "spaces", "header only"])
def test_files_of_another_length_are_refused(finished_project, tmp_path, change):
    for source, read in readers(finished_project).items():
        whole = source.read_bytes()
        length = 8 + int.from_bytes(whole[:8], "little")
        longer = (length - 8 + 8).to_bytes(8, "little") + whole[8:length] + b" " * 8 + whole[length:]
        changed = {"cut": whole[:-1], "grown": whole + b"\0", "empty": b"", "spaces": longer}
        path = tmp_path / source.name
        path.write_bytes(changed.get(change, whole[:length]))
        assert faults(path)
        with pytest.raises(NeuronrankError):
            read(path)


def test_bytes_of_a_model_description_are_guarded(project):
    path = project.artifacts / "model/model.json"
    whole = path.read_bytes()
    drawn = random.Random(3)
    for place in drawn.sample(range(len(whole)), 80):
        changed = bytearray(whole)
        changed[place] ^= 1 << drawn.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(NeuronrankError):
            open_model(path.parent)
    assert faults(path.parent)
    path.write_bytes(whole)
    assert not faults(path.parent)


def test_the_seal_is_the_sha256_with_its_own_digits_as_zeros(finished_project):
    """Worked out here by plain means."""
    for path in (finished_project.mask("wanda", "50pct"), finished_project.statistics / "manifest.json"):
        whole = path.read_bytes()
        seal = (MaskFile(path).seal if path.suffix == ".safetensors" else json.loads(whole)["file_sha256"]).encode()
        assert whole.count(seal) == 1
        assert hashlib.sha256(whole.replace(seal, b"0" * 64)).hexdigest().encode() == seal


def test_chunks_that_changed_places_or_are_missing_or_extra(small, tmp_path):
    copy = shutil.copytree(small, tmp_path / "copy")
    one, two = (copy / f"taps.zarr/{tap}/sum_sq/c/0/0/0" for tap in ("neuron", "mlp_mid"))
    first, second = one.read_bytes(), two.read_bytes()
    assert len(first) == len(second)
    one.write_bytes(second)
    two.write_bytes(first)
    assert len(faults(copy)) == 2
    with pytest.raises(ArtifactError, match="corrupt, its bytes have sha256"):
        read_all(copy)
    one.write_bytes(first)
    two.unlink()
    (copy / "taps.zarr/extra").write_text("x")
    found = faults(copy)
    assert len(found) == 2
    assert "missing, although the manifest lists it" in found[0]
    assert "taps.zarr/extra: the manifest does not list this file" in found[1]
    with pytest.raises(ArtifactError, match="missing, although the manifest lists it"):
        read_all(copy)


def reseal(directory: Path, change) -> None:
    """Change a manifest as somebody would who wants it to be believed."""
    manifest = read_json(directory / "manifest.json", "x")
    change(manifest)
    write_sealed_json(directory / "manifest.json", manifest)


def relist(directory: Path, name: str) -> None:
    """Let the manifest list a file as it is now."""
    content = (directory / name).read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    reseal(directory, lambda manifest: manifest["files"].update({name: entry}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["files"].update({"../x": {"bytes": 1, "sha256": "0" * 64}}), "not a plain relative path"),
        (lambda m: m["files"].update({"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}), "not a plain relative path"),
        (lambda m: m["files"].update({"a/../../x": {"bytes": 1, "sha256": "0" * 64}}), "not a plain relative path"),
        (lambda m: m.update(n_layers=10**30), "n_layers"),
        (lambda m: m.update(n_layers="1"), "n_layers"),
        (lambda m: m.update(n_layers=True), "n_layers"),
        (lambda m: m["calibration"].update(n_windows=-1), "calibration.n_windows"),
        (lambda m: m["modules"][0].update(shape=[3]), "modules.0.shape"),
        (lambda m: m["modules"][0].update(layer=7), "in no layer of 1"),
        (lambda m: m.update(modules={}), "modules"),
        (lambda m: m.update(profile="mine"), "profile is 'mine'"),
        (lambda m: m.pop("collect"), "lacks collect"),
    ],
)
def test_manifests_that_lie_are_refused_by_field(small, tmp_path, change, message):
    copy = shutil.copytree(small, tmp_path / "copy")
    reseal(copy, change)
    with pytest.raises(ArtifactError, match=message) as caught:
        Statistics(copy)
    assert "manifest.json" in str(caught.value)
    assert faults(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.update(shape=[1, 10**9, 10**9]),
        lambda about: (
            about.update(shape=[1, 3, 2**31]),
            about["chunk_grid"]["configuration"].update(chunk_shape=[1, 3, 2**31]),
        ),
        lambda about: about.update(shape=[10**40, 3, 3]),
        lambda about: about.update(data_type="string"),
        lambda about: about.update(codecs=[{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 5}}]),
        lambda about: about.update(shape="many"),
        lambda about: about.pop("chunk_grid"),
    ],
)
def test_arrays_that_claim_what_their_files_cannot_hold_are_refused_before_they_are_read(small, tmp_path, change):
    copy = shutil.copytree(small, tmp_path / "copy")
    path = copy / "taps.zarr/neuron/sum_sq/zarr.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))
    relist(copy, "taps.zarr/neuron/sum_sq/zarr.json")
    with pytest.raises(ArtifactError, match="neuron/sum_sq"):
        Statistics(copy).layer_values(0, "neuron", "sum_sq")
    assert faults(copy)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"a":' * 100_000, "1" * 10_000, "\ud800", '{"schema": 1' + "0" * 5000]
)
def test_json_that_is_nested_too_deeply_or_holds_huge_numbers_is_refused(small, tmp_path, text):
    copy = shutil.copytree(small, tmp_path / "copy")
    (copy / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        Statistics(copy)
    assert faults(copy)


def tensor_file(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({"a": F32}, bytes(8), 2**63),
        ({"a": F32}, bytes(8), 10**11),
        ({"a": F32}, bytes(7), None),
        ({"a": F32}, bytes(9), None),
        ({"a": {**F32, "shape": [2**40, 2**40]}}, bytes(8), None),
        ({"a": {**F32, "shape": [-2, -1]}}, bytes(8), None),
        ({"a": {**F32, "shape": "2"}}, bytes(8), None),
        ({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8), None),
        ({"a": {**F32, "data_offsets": [4, 12]}}, bytes(12), None),
        ({"a": F32, "b": F32}, bytes(8), None),
        ({"a": {**F32, "shape": [True, 2]}}, bytes(8), None),
        ({"a": 3}, b"", None),
        ({"__metadata__": {"neuronrank": 3}}, b"", None),
        ("[" * 100_000, b"", None),
        ("[]", b"", None),
    ],
)
def test_headers_of_tensors_are_checked_before_anything_is_allocated(tmp_path, header, data, length):
    path = tensor_file(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(ValueError, match=r"."):
        shard_header(path)
    for read in (read_scores, MaskFile, read_losses, read_windows):
        with pytest.raises(ArtifactError, match=r"model\.safetensors"):
            read(path)
    assert faults(path)


def test_a_sound_header_is_read(tmp_path):
    path = tensor_file(tmp_path / "a.safetensors", {"a": F32, "b": {**F32, "data_offsets": [8, 16]}}, bytes(16))
    header, start = read_safetensors_header(path)
    assert header["b"]["data_offsets"] == [8, 16]
    assert start == path.stat().st_size - 16


def test_names_of_shards_stay_inside_their_directory(tiny_model, tmp_path):
    from neuronrank.checkpoint import Checkpoint

    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    for name in ("../model.safetensors", "/etc/passwd", "..", "a/b.safetensors", 3, None):
        changed = {**index, "weight_map": {**index["weight_map"], "x": name}}
        (copy / "model.safetensors.index.json").write_text(json.dumps(changed))
        with pytest.raises(SourceError):
            Checkpoint(copy)


def test_a_mask_that_does_not_fit_its_header_is_refused(finished_project, tmp_path):
    """Sealed again after each change, as somebody would who wants it to be believed."""
    from safetensors.numpy import load_file

    source = finished_project.mask("wanda", "50pct")
    packed, header = load_file(source), MaskFile(source).header
    name = sorted(packed)[0]
    path = tmp_path / "mask.safetensors"
    huge = {**header, "shapes": {**header["shapes"], name: [2**39, 2**39]}}
    for tensors, changed in (
        (packed, huge),
        (packed, {**header, "shapes": {**header["shapes"], name: [-1, 5]}}),
        (packed, {**header, "untied": 3}),
        (packed, {**header, "modules": [{**header["modules"][0], "rows": [0, 0, 0]}]}),
        ({key: value for key, value in packed.items() if key != name}, header),
        ({**packed, "more": packed[name]}, header),
        ({**packed, name: packed[name].astype(np.int16)}, header),
    ):
        write_tensors(path, tensors, changed)
        with pytest.raises(ArtifactError, match=r"mask\.safetensors"):
            MaskFile(path)
        assert faults(path)
    flipped = packed[name].copy()
    flipped[0] ^= 128
    write_tensors(path, {**packed, name: flipped}, header)
    assert "its header says" in faults(path)[0]
    write_tensors(path, packed, {**header, "sparsity": {**header["sparsity"], "selected": 0.4}})
    assert "states sparsity 0.4" in faults(path)[0]


def test_the_chain_from_model_to_losses_and_export(finished_project, tmp_path):
    """Every link is named; a mask of other scores differs; what is not given is said."""
    project = finished_project
    out = tmp_path / "pruned"
    command = ["export", "--model", str(project.artifacts / "model"), "--mask", str(project.mask("wanda", "50pct"))]
    assert CliRunner().invoke(main, [*command, "--out", str(out)]).exit_code == 0
    shown = CliRunner().invoke(main, ["verify", str(project.artifacts), str(out)])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    links = [line for line in lines if ": made from " in line]
    for kind, path in (
        ("masks", project.mask("wanda", "50pct")),
        ("scores", project.scores("wanda")),
        ("statistics", project.statistics),
        ("calibration", project.artifacts / "tokens/calibration/windows.safetensors"),
        ("model", project.artifacts / "model"),
    ):
        assert any(line.startswith(f"ok     {out}: made from {kind} {path} (") for line in links), kind
    assert not any(line.startswith("-") for line in lines)
    sequential = project.mask("wanda_sequential", "50pct")
    assert any(f"{sequential}: made from statistics {project.artifacts / 'sequential'}" in line for line in links)

    alone = CliRunner().invoke(main, ["verify", str(project.mask("wanda", "50pct"))])
    assert alone.exit_code == 0
    assert "made from scores" in alone.output
    assert "not among what was given" in alone.output
    differs = CliRunner().invoke(main, ["verify", str(project.mask("wanda", "50pct")), str(project.scores("hybrid"))])
    assert differs.exit_code == 1
    assert "which differs" in differs.output

    shard = sorted(out.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (out / "more.bin").write_bytes(b"x")
    broken = CliRunner().invoke(main, ["verify", str(out)])
    assert broken.exit_code == 1
    assert f"{shard}: has sha256" in broken.output
    assert "more.bin: a file that the export did not write" in broken.output
    assert "2 faults" in broken.output


def test_seals_follow_from_content_and_metrics_name_what_went_in(finished_project):
    project = finished_project
    manifest = read_json(project.statistics / "manifest.json", "x")
    _, scores = read_scores(project.scores("wanda"))
    mask = MaskFile(project.mask("wanda", "50pct"))
    model = open_model(project.artifacts / "model")
    tokens = read_windows(project.artifacts / "tokens/calibration/windows.safetensors")
    expected = {
        "model": model.fingerprint,
        "calibration": tokens.sha256,
        "statistics": manifest["file_sha256"],
        "scores": scores["file_sha256"],
    }
    assert mask.header["made_from"] == expected
    pruned = json.loads((project.metrics / "prune/wanda/50pct.json").read_text())
    assert pruned["made_from"] == {**expected, "masks": mask.seal}
    evaluated = json.loads((project.metrics / "eval/wanda/50pct.json").read_text())["made_from"]
    assert evaluated["masks"] == mask.seal
    assert {"evaluation/wiki", "evaluation/news", "losses", "dense_losses"} <= evaluated.keys()
    assert {"neuronrank", "torch", "numpy", "zarr", "numba"} <= manifest["versions"].keys()


def test_weights_of_a_fetched_model_that_changed_are_found_by_verify(project, tiny_model, tmp_path):
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    description = read_json(project.artifacts / "model/model.json", "x")
    write_sealed_json(project.artifacts / "model/model.json", {**description, "weights": {"path": str(copy)}})
    assert not faults(project.artifacts / "model")
    for shard in sorted(copy.glob("*.safetensors"))[:2]:
        content = bytearray(shard.read_bytes())
        content[-3] ^= 1
        shard.write_bytes(content)
    found = faults(project.artifacts / "model")
    assert len(found) == 2
    assert all("changed after they were fetched" in line for line in found)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    with pytest.raises(NeuronrankError, match=r"config\.json: is not what"):
        open_model(project.artifacts / "model")


def test_a_sealed_json_is_read_back_and_white_space_counts(tmp_path):
    path = tmp_path / "a.json"
    seal = write_sealed_json(path, {"schema": "s", "b": 1})
    text = path.read_text()
    assert text == canonical_json({"schema": "s", "b": 1, "file_sha256": seal})
    assert read_sealed_json(path, "s", "x")["b"] == 1
    for changed in (text + "\n", text.replace('"b": 1', '"b":1'), text.replace(seal, seal.upper()), text[:-1]):
        path.write_text(changed)
        with pytest.raises(ArtifactError):
            read_sealed_json(path, "s", "x")


def test_a_seal_is_taken_over_a_file_larger_than_a_block(tmp_path):
    path = tmp_path / "a.safetensors"
    seal = write_tensors(path, {"a": np.arange(2**19, dtype=np.float64)}, {"schema": "s"})
    check_tensor_file(path, "x")
    whole = path.read_bytes()
    assert hashlib.sha256(whole.replace(seal.encode(), b"0" * 64)).hexdigest() == seal
    path.write_bytes(whole[:-9] + b"\1" + whole[-8:])
    with pytest.raises(ArtifactError, match="changed after it was written"):
        check_tensor_file(path, "x")


def test_nothing_to_check_is_a_fault(tmp_path):
    assert "not found" in faults(tmp_path / "nowhere")[0]
    assert "holds no artifact of ours" in faults(tmp_path)[0]


def test_the_parts_of_merged_statistics_need_not_be_kept(tmp_path):
    part = Checked(tmp_path / "one", "statistics", "b" * 64)
    merged = Checked(tmp_path / "both", "statistics", "a" * 64, {"parts": f"{'b' * 64} {'c' * 64}"})
    assert [finding.state for finding in _links([part, merged])] == ["ok", "-"]
    stale = Checked(tmp_path / "scores", "scores", "d" * 64, {"statistics": "e" * 64})
    assert [finding.state for finding in _links([part, stale])] == ["FAULT"]
