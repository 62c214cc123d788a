"""`neuronrank diff`: hand-made pairs, each with one known difference."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from neuronrank import differing
from neuronrank.artifact_kinds import KINDS, MODEL_FILE, MODEL_SCHEMA
from neuronrank.cli import main
from neuronrank.differing import difference
from neuronrank.differing_settings import differing_settings
from neuronrank.differing_values import ArraySource, array_difference
from neuronrank.fetching import fetch_model
from neuronrank.files import write_sealed_json
from neuronrank.mask_store import pack, write_masks
from neuronrank.provenance import file_entries
from neuronrank.score_store import SCHEMA, write_scores
from neuronrank.statistics_store import MANIFEST
from neuronrank.windows import write_windows
from tests import artifacts
from tests.imatrix_files import pair, write_by_gguf

GATE, DOWN, UP = (f"model.layers.0.mlp.{name}_proj" for name in ("gate", "down", "up"))
SHARED = {
    "recipe": "wanda",
    "n_layers": 1,
    "model": {"fingerprint": "f" * 64},
    "calibration": {"n_windows": 2, "sha256": "c" * 64},
    "collect": {"dtype": "float32"},
    "made_from": {"model": "f" * 64},
}
PART = {
    "method": "neuronrank_tfidf",
    "default_group": "module",
    "elements": True,
    "neurons": False,
    "weight_exp": 1.0,
    "weight_multi": 1.0,
    "params": {"idf_exp": 1.0},
}


def run(*command, code) -> str:
    done = CliRunner().invoke(main, ["diff", *(str(part) for part in command)])
    assert done.exit_code == code, done.output
    return done.output


def scores(path, factors=None, **changes):
    given = {f"{GATE}.row": [1, 2, 3, 4], f"{DOWN}.column": [4, 3, 2, 1], **(factors or {})}
    vectors = {name: np.float32(values) for name, values in given.items() if values is not None}
    names = sorted({name.rpartition(".")[0] for name in vectors if not name.startswith("neurons.")} | {GATE, DOWN})
    header = {**SHARED, "schema": SCHEMA, "parts": {"mlp": PART}, "lm_head": {}}
    header["modules"] = [artifacts.module(name, "mlp", shape(name, vectors), "x", "neuron", "row") for name in names]
    write_scores(path, vectors, header | changes)
    return path


def shape(module, vectors) -> tuple[int, ...]:
    """Four by four, unless a vector of the module says otherwise."""
    return tuple(
        next((len(vectors[name]) for name in (f"{module}.{axis}", f"{module}.{axis}_term") if name in vectors), 4)
        for axis in ("row", "column")
    )


def masks(path, keep, **changes):
    entries = [
        {
            "name": name,
            "part": "mlp",
            "layer": 0,
            "shape": list(np.shape(bits)),
            "n_removed": int(np.sum(~np.bool_(bits))),
            "weight": f"{name}.weight",
            "rows": None,
            "transposed": False,
        }
        for name, bits in keep.items()
    ]
    header = {
        **SHARED,
        "pattern": {"name": "50pct", "rule": "unstructured", "sparsity": 0.5},
        "modules": entries,
        "shapes": {entry["weight"]: entry["shape"] for entry in entries},
        "sparsity": {"model": sum(entry["n_removed"] for entry in entries) / 100},
        "untied": {},
    }
    write_masks(path, {f"{name}.weight": pack(np.bool_(bits)) for name, bits in keep.items()}, header | changes)
    return path


def statistics(directory, profile="full", **changed):
    sums = {
        ("mlp_in", "sum_sq"): np.arange(1, 9, dtype=np.float32).reshape(2, 4),
        ("neuron", "sum_abs"): np.array([[10, 30], [40, 30]], dtype=np.float32),
        ("neuron", "n_positive"): np.array([5, 15], dtype=np.int32),
    }
    for key, values in changed.items():
        sums["neuron", key] = np.asarray(values, dtype=sums["neuron", key].dtype)
    return artifacts.statistics(directory, sums, [], {f"{GATE}.row_sum_abs": [1, 2]}, profile).directory


def relist(directory):
    """Make a manifest of changed files, as their author would."""
    manifest = json.loads((directory / MANIFEST).read_text())
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    write_sealed_json(directory / MANIFEST, {**manifest, "files": file_entries(directory, paths)})


# Settings


def test_one_setting_is_told_with_both_values(tmp_path):
    parts = {"mlp": {**PART, "params": {"idf_exp": 2.0}}}
    one, two = scores(tmp_path / "a"), scores(tmp_path / "b", parts=parts)
    shown = run(one, two, code=1)
    assert "settings: 1 differ\n  parts.mlp.params.idf_exp: 1.0 | 2.0\narrays: 0 of 2 differ\n" in shown
    assert shown.endswith("they differ\n")
    found = json.loads(run(one, two, "--json", code=1))
    assert found["settings"] == [{"key": "parts.mlp.params.idf_exp", "a": 1.0, "b": 2.0}]
    assert (found["arrays"], found["equal"]) == ([], False)


def test_settings_are_compared_by_type_presence_and_place():
    one = {"x": {"y": 1, "z": None}, "list": [1, 2], "gone": {"deep": 3}, "same": {"empty": {}}}
    two = {"x": {"y": True, "z": None}, "list": [2, 1], "same": {"empty": {}}, "new": None}
    assert differing_settings(one, two) == [
        {"key": "gone.deep", "a": 3},
        {"key": "list", "a": [1, 2], "b": [2, 1]},
        {"key": "new", "b": None},
        {"key": "x.y", "a": 1, "b": True},
    ]


def test_a_long_list_is_summed_up():
    origins = [{"document": f"d{number}", "offset": 0} for number in range(6)]
    moved = copy.deepcopy(origins)
    moved[2]["offset"], moved[5]["document"] = 7, "other"
    (found,) = differing_settings({"c": {"origins": origins}}, {"c": {"origins": moved}})
    first = {"key": "c.origins.2.offset", "a": 0, "b": 7}
    assert found == {"key": "c.origins", "n_a": 6, "n_b": 6, "n_differ": 2, "first": first}
    (found,) = differing_settings({"n": list(range(20))}, {"n": list(range(18))})
    assert found == {"key": "n", "n_a": 20, "n_b": 18, "n_differ": 2, "first": {"key": "n.18", "a": 18}}


def test_digests_of_the_contents_are_no_settings(tmp_path):
    one, two = ({"file_sha256": digest * 64, "files": {"x": digest}} for digest in "ab")
    assert run(scores(tmp_path / "a", **one), scores(tmp_path / "b", **two), code=0).endswith("\nequal\n")
    assert differing_settings({"made_from": {"files": 1}}, {"made_from": {"files": 2}})


# Numbers


def test_one_number_is_found_in_its_place(tmp_path):
    one, two = scores(tmp_path / "a"), scores(tmp_path / "b", {f"{GATE}.row": [1, 2, 2.5, 4]})
    (row,) = difference(one, two)["arrays"]
    assert (row["array"], row["shape"], row["dtype"], row["n"], row["n_differ"]) == (
        f"{GATE}.row",
        [4],
        "float32",
        4,
        1,
    )
    assert row["largest_absolute"] == {"value": 0.5, "index": [2], "a": 3.0, "b": 2.5}
    assert row["largest_relative"] == {"value": 0.5 / 3, "index": [2], "a": 3.0, "b": 2.5}
    assert row["not_finite"] is None
    shown = run(one, two, code=1)
    assert "settings: 0 differ" in shown
    line = next(line for line in shown.splitlines() if line.startswith(f"{GATE}.row"))
    assert line.split() == [f"{GATE}.row", "1", "4", "0.5", "[2]", "0.1667", "[2]"]


def test_the_largest_absolute_and_relative_difference_may_lie_apart():
    """The chunks are single rows: the index counts from the first."""
    one = np.array([[100.0, 1.0], [5.0, 0.0], [-1.0, 2.0]])
    two = np.array([[90.0, 1.0], [5.0, -0.0], [1.0, 2.0]])
    row = array_difference("x", *(ArraySource(v.shape, "float64", lambda part, v=v: v[part], 1) for v in (one, two)))
    assert row["n_differ"] == 2
    assert row["largest_absolute"] == {"value": 10.0, "index": [0, 0], "a": 100.0, "b": 90.0}
    assert row["largest_relative"] == {"value": 2.0, "index": [2, 0], "a": -1.0, "b": 1.0}


def test_whole_numbers_have_no_relative_difference(tmp_path):
    ids = np.arange(12, dtype=np.int32).reshape(3, 4)
    other = ids.copy()
    other[1, 2], other[2, 0] = 1, 9
    header = {"tokenizer_sha256": "d" * 64, "window_tokens": 4, "source": {}}
    for name, values in (("a", ids), ("b", other)):
        write_windows(tmp_path / name, values, header)
    (row,) = difference(tmp_path / "a", tmp_path / "b")["arrays"]
    assert (row["n_differ"], row["largest_relative"]) == (2, None)
    assert row["largest_absolute"] == {"value": 5, "index": [1, 2], "a": 6, "b": 1}
    assert isinstance(row["largest_absolute"]["value"], int)


def test_nan_equals_nan_and_nothing_else(tmp_path):
    for name, values in (("a", [1, np.nan, np.inf, 2]), ("b", [1, np.nan, np.inf, 2]), ("c", [np.nan, np.nan, 5, 3])):
        scores(tmp_path / name, {f"{UP}.row": values})
    assert run(tmp_path / "a", tmp_path / "b", code=0).endswith("equal\n")
    (row,) = json.loads(run(tmp_path / "a", tmp_path / "c", "--json", code=1))["arrays"]
    assert row["n_differ"] == 3
    assert row["not_finite"] == {"n": 2, "index": [0], "a": 1.0, "b": "nan"}
    assert row["largest_absolute"] == {"value": 1.0, "index": [3], "a": 2.0, "b": 3.0}
    assert "not finite: 2, the first [0]: 1.0 | nan" in run(tmp_path / "a", tmp_path / "c", code=1)


def test_an_array_that_only_one_holds_and_shapes_are_told(tmp_path):
    one = scores(tmp_path / "a", {f"{UP}.row_term": [1, 1]})
    two = scores(tmp_path / "b", {f"{DOWN}.column": None, f"{UP}.row_term": [1, 1, 1], "neurons.0": [1]})
    found = difference(one, two)
    assert (found["only_in_a"], found["only_in_b"]) == ([f"{DOWN}.column"], ["neurons.0"])
    shapes = {side: {"shape": [n], "dtype": "float32"} for side, n in (("a", 2), ("b", 3))}
    assert found["shapes"] == [{"array": f"{UP}.row_term", **shapes}]
    assert (found["n_compared"], found["arrays"], found["equal"]) == (1, [], False)
    shown = run(one, two, code=1)
    assert f"only in a: 1\n  {DOWN}.column\nonly in b: 1\n  neurons.0\n" in shown
    assert f"shapes or types: 1 differ\n  {UP}.row_term: 2 float32 | 3 float32\n" in shown


def test_rank_correlations_of_scores(tmp_path):
    """Of four ranks with two neighbours exchanged Spearman's is 1 - 6 * 2 / (4 * 15) = 0.8; magnitudes do not count."""
    one = scores(tmp_path / "a", {"flat.row": [1, 1, 1], "x.row": [1, 2, 3]})
    two = scores(tmp_path / "b", {f"{GATE}.row": [1, 2, 40, 30], "flat.row": [1, 2, 3], "x.row": [2, 20, 21]})
    found = difference(one, two)["rank_correlation"]
    assert found["worst"] == {"array": f"{GATE}.row", "value": pytest.approx(0.8)}
    assert (found["n"], found["median"], found["undefined"]) == (3, 1.0, ["flat.row"])
    shown = run(one, two, code=1)
    assert f"of 3 vectors: worst 0.800000 ({GATE}.row), median 1.000000; undefined for 1 that are constant" in shown


# Masks


def test_one_bit_is_counted_in_its_module(tmp_path):
    keep = {GATE: [[1, 0, 1], [0, 1, 0]], DOWN: [[0, 0], [1, 1], [1, 1]]}
    flipped = {**keep, GATE: [[1, 0, 1], [0, 0, 0]]}
    found = difference(masks(tmp_path / "a", keep), masks(tmp_path / "b", flipped))
    assert found["settings"] == []  # counts and shares follow from the bits
    assert found["modules"][0] == {
        "module": GATE,
        "bits": 6,
        "n_differ": 1,
        "removed_a": 3,
        "removed_b": 4,
        "removed_both": 3,
        "jaccard": 3 / 4,
    }
    assert (found["modules"][1]["n_differ"], found["modules"][1]["jaccard"]) == (0, 1.0)
    assert found["total"]["jaccard"] == 5 / 6
    assert not found["equal"]
    shown = run(tmp_path / "a", tmp_path / "b", code=1)
    assert "modules: 1 of 2 differ\nbits: 1 of 12 differ; removed 5 | 6, Jaccard index of the removed 0.833333" in shown
    line = next(line for line in shown.splitlines() if line.startswith(GATE))
    assert line.split() == [GATE, "1", "6", "3", "4", "0.750000"]


def test_equal_masks_and_masks_that_remove_nothing(tmp_path):
    keep = {GATE: [[1, 1], [1, 1]]}
    found = difference(masks(tmp_path / "a", keep), masks(tmp_path / "b", keep))
    assert found["equal"]
    assert found["total"]["jaccard"] == 1.0


def test_modules_that_share_a_weight_are_told_apart(tmp_path):
    """Two modules of two rows each in one stored weight of four; the second one's first row differs."""
    for name, row in (("a", [1, 0]), ("b", [0, 1])):
        whole = np.bool_([[1, 1], [1, 0], row, [1, 1]])
        shared = {"part": "attention", "layer": 0, "shape": [2, 2], "weight": "w", "transposed": False}
        entries = [{**shared, "name": f"m.{n}", "n_removed": 1, "rows": [2 * n, 2, 4]} for n in range(2)]
        pattern = {"name": "50pct", "rule": "unstructured"}
        header = {
            **SHARED,
            "pattern": pattern,
            "modules": entries,
            "shapes": {"w": [4, 2]},
            "sparsity": {},
            "untied": {},
        }
        write_masks(tmp_path / name, {"w": pack(whole)}, header)
    first, second = difference(tmp_path / "a", tmp_path / "b")["modules"]
    assert (first["module"], first["n_differ"]) == ("m.0", 0)
    assert (second["module"], second["n_differ"], second["jaccard"]) == ("m.1", 2, 0.0)


# Statistics and models


def test_statistics_are_compared_array_by_array(tmp_path):
    one, two = statistics(tmp_path / "a"), statistics(tmp_path / "b", sum_abs=[[10, 30], [41, 30]], n_positive=[5, 18])
    found = difference(one, two)
    rows = {row["array"]: row for row in found["arrays"]}
    assert rows.keys() == {"neuron/sum_abs", "neuron/tf_sum", "neuron/n_positive"}
    assert rows["neuron/sum_abs"]["largest_absolute"] == {"value": 1.0, "index": [0, 1, 0], "a": 40.0, "b": 41.0}
    assert rows["neuron/n_positive"]["largest_absolute"] == {"value": 3, "index": [0, 1], "a": 15, "b": 18}
    assert found["settings"] == []
    assert difference(one, statistics(tmp_path / "c"))["equal"]


def test_arrays_of_a_smaller_profile_are_missing_there(tmp_path):
    found = difference(statistics(tmp_path / "a"), statistics(tmp_path / "b", profile="lean"))
    assert found["only_in_a"] == ["mlp_in/sum_sq", "neuron/sum_abs"]
    assert found["settings"] == [{"key": "profile", "a": "full", "b": "lean"}]


def test_a_layer_that_differs_is_found_in_a_real_artifact(project, finished_project):
    array = zarr.open_group(project.statistics / "taps.zarr", mode="r+")["neuron/sum_abs"]
    array[1, 7, 3] = array[1, 7, 3] + 1
    relist(project.statistics)
    (row,) = difference(finished_project.statistics, project.statistics)["arrays"]
    assert (row["array"], row["n_differ"]) == ("neuron/sum_abs", 1)
    assert row["largest_absolute"]["index"] == [1, 7, 3]
    assert row["largest_absolute"]["value"] == pytest.approx(1)
    shutil.rmtree(project.statistics / "taps.zarr/neuron/sum_abs/c/0")
    assert "missing, although the manifest lists it" in run(finished_project.statistics, project.statistics, code=2)


def test_every_kind_of_a_real_project_equals_itself_and_recipes_differ(finished_project):
    base = finished_project.artifacts
    for path in (
        finished_project.statistics,
        finished_project.scores("hybrid"),
        finished_project.mask("hybrid", "50pct"),
        base / "losses/dense.safetensors",
        base / "tokens/calibration/windows.safetensors",
        base / "model",
    ):
        assert run(path, path, code=0).endswith("equal\n")
    shown = run(finished_project.scores("wanda"), finished_project.scores("hybrid"), code=1)
    assert "  recipe: wanda | hybrid\n" in shown
    assert "parts.mlp.method: wanda | neuronrank_tfidf\n" in shown
    keys = [
        one["key"]
        for one in difference(finished_project.mask("wanda", "50pct"), finished_project.mask("hybrid", "50pct"))[
            "settings"
        ]
    ]
    assert "recipe" in keys
    assert not {"sparsity.model", "modules"} & set(keys)


def fetched(source, out):
    fetch_model({"source": "path", "path": str(source)}, out)
    return out


def test_models_are_compared_by_their_digests(tiny_model, tmp_path):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    shard = min(other.glob("*.safetensors"))
    tensors = load_file(shard)
    changed = sorted(tensors)[0]
    tensors[changed].view(-1)[0] += 1
    save_file(tensors, shard, metadata={"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    one, two = fetched(tiny_model, tmp_path / "a"), fetched(other, tmp_path / "b")
    found = difference(one, two)
    assert (found["contents"], found["only_in_a"], found["only_in_b"]) == ([changed], [], [])
    assert {"key": "config.rms_norm_eps", "a": config["rms_norm_eps"], "b": 0.5} in found["settings"]
    assert f" hold other values\n  {changed}\n" in run(one, two, code=1)
    assert difference(one, fetched(tiny_model, tmp_path / "c"))["equal"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-00001-of"])
def test_a_model_that_is_not_what_it_says_is_equal_to_none(tiny_model, tmp_path, name):
    """What was fetched and changed afterwards: its description is the one of before."""
    source = shutil.copytree(tiny_model, tmp_path / "source")
    one, two = fetched(tiny_model, tmp_path / "a"), fetched(source, tmp_path / "b")
    damaged = next(path for path in (*two.rglob(f"{name}*"), *source.glob(f"{name}*")))
    content = bytearray(damaged.read_bytes())
    at = content.rindex(b"silu") if name == "config.json" else len(content) - 3
    content[at] ^= 1
    damaged.write_bytes(content)
    assert "is not what model.json says" in run(one, two, code=2)


def test_exported_models_are_compared_file_by_file_and_tensor_by_tensor(finished_project, tmp_path):
    model = finished_project.artifacts / "model"
    for name in ("wanda", "hybrid"):
        mask = finished_project.mask(name, "50pct")
        command = ["export", "--model", str(model), "--mask", str(mask), "--out", str(tmp_path / name)]
        assert CliRunner().invoke(main, command).exit_code == 0
    one, two = tmp_path / "wanda", tmp_path / "hybrid"
    assert run(one, one, code=0).endswith("equal\n")
    found = difference(one, two)
    held: list[dict] = [{}, {}]
    for tensors, directory in zip(held, (one, two), strict=True):
        for path in directory.glob("*.safetensors"):
            tensors.update(load_file(path))
    assert found["n_compared"] == len(held[0]) > 14
    other = {name for name in held[0] if not torch.equal(held[0][name], held[1][name])}
    assert other
    assert set(found["contents"]) == other
    assert {"key": "recipe", "a": "wanda", "b": "hybrid"} in found["settings"]
    assert not any(entry["key"].startswith(("sha256", "files", "sparsity")) for entry in found["settings"])
    again = shutil.copytree(one, tmp_path / "again")
    header = json.loads((again / "neuronrank.json").read_text())
    (again / "config.json").write_text((again / "config.json").read_text() + " ")
    assert "again/config.json: has" in run(one, again, code=2)
    paths = (path for path in again.rglob("*") if path.is_file() and path.name != "neuronrank.json")
    write_sealed_json(again / "neuronrank.json", {**header, "files": file_entries(again, paths)})
    found = difference(one, again)
    assert [entry["key"] for entry in found["settings"]] == ["sha256.config.json"]
    assert found["contents"] == []


def test_importance_matrices_are_compared_number_by_number(tmp_path):
    name = "blk.0.attn_q.weight"
    one = write_by_gguf(tmp_path / "a.gguf", pair(name, [[1, 2, 4]], [9]))
    two = write_by_gguf(tmp_path / "b.gguf", pair(name, [[1, 2, 5]], [8]), chunk_size=256)
    found = difference(one, two)
    assert (found["artifact"], found["schema"]) == ("imatrix", "imatrix")
    assert found["settings"] == [{"key": "chunk_size", "a": 512, "b": 256}]
    rows = {row["array"]: row["largest_absolute"] for row in found["arrays"]}
    assert rows == {
        f"{name}.in_sum2": {"value": 1.0, "index": [0, 2], "a": 4.0, "b": 5.0},
        f"{name}.counts": {"value": 1, "index": [0], "a": 9, "b": 8},
    }
    assert run(one, one, code=0).endswith("equal\n")
    assert "general.type is 'model'" in run(one, write_by_gguf(tmp_path / "m.gguf", {}, kind="model"), code=2)
    assert "only artifacts of one kind" in run(one, scores(tmp_path / "scores"), code=2)


def test_every_kind_of_artifact_can_be_compared():
    assert differing._READERS.keys() == set(KINDS.values())


def test_the_names_of_a_models_file_are_those_of_the_checkpoint():
    from neuronrank import checkpoint

    assert (MODEL_FILE, MODEL_SCHEMA) == (checkpoint.MODEL_FILE, checkpoint.SCHEMA)


# What others wrote

STEERING = "w\x1b]0;owned\x07\x1b[2J\r\n\x9b1m\u202e"
ESCAPED = r"w\x1b]0;owned\x07\x1b[2J\r\n\x9b1m\u202e"


@pytest.mark.parametrize("command", ["inspect", "diff", "verify"])
def test_texts_of_an_artifact_steer_no_terminal(tmp_path, command):
    """With color=True click leaves escape sequences as they are; without it, it takes them out itself."""
    plain = scores(tmp_path / "a")
    hostile = scores(tmp_path / "b", {f"{GATE}{STEERING}.row": [1, 2, np.nan, 4]}, recipe=STEERING)
    arguments = [command, *([plain] if command == "diff" else []), hostile]
    done = CliRunner().invoke(main, [str(part) for part in arguments], color=True)
    assert all(line.isprintable() for line in done.output.split("\n"))
    assert ESCAPED in done.output


def test_an_error_steers_no_terminal(tmp_path):
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "a\x1b[2J")], color=True)
    assert r"a\x1b[2J: not found" in done.output
    assert "\x1b" not in done.output


@pytest.mark.parametrize("command", ["inspect", "diff"])
def test_json_of_such_texts_is_escaped_and_means_the_same(tmp_path, command):
    steering = STEERING + "\U000e0001"  # beyond 16 bits
    plain, hostile = scores(tmp_path / "a"), scores(tmp_path / "b", recipe=steering)
    arguments = ["inspect", str(hostile)] if command == "inspect" else ["diff", str(plain), str(hostile)]
    done = CliRunner().invoke(main, [*arguments, "--json"], color=True)
    assert all(line.isprintable() for line in done.stdout.split("\n"))
    found = json.loads(done.stdout)
    assert (found["recipe"] if command == "inspect" else found["settings"][-1]["b"]) == steering


# What cannot be compared


def test_what_cannot_be_compared_is_an_error_and_not_a_difference(tmp_path):
    one, bits = scores(tmp_path / "a"), masks(tmp_path / "b", {GATE: [[1]]})
    shown = run(one, bits, code=2)
    assert "schemas are 'neuronrank.scores/4' and 'neuronrank.masks/4'; only artifacts of one kind and schema" in shown
    older = scores(tmp_path / "older", schema="neuronrank.scores/2")
    assert "schemas are 'neuronrank.scores/4' and 'neuronrank.scores/2'" in run(one, older, code=2)
    assert "schema is 'neuronrank.scores/2'; this version reads" in run(older, older, code=2)
    assert "nowhere: not found" in run(one, tmp_path / "nowhere", code=2)
    assert "has no manifest.json" in run(one, tmp_path, code=2)
    (tmp_path / "x").write_bytes(b"no")
    assert "not a readable safetensors file" in run(tmp_path / "x", one, code=2)
    assert run(one, code=2).startswith("Usage")
