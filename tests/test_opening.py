"""`neuronrank.open_statistics`: against hand-made sums, and against the store read by plain zarr."""

import re
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import zarr

import neuronrank
from neuronrank import statistics_store
from neuronrank.errors import ArtifactError, UnknownName
from neuronrank.statistics_writer import StatisticsWriter
from tests import artifacts
from tests.imports import ROOT

SUMS = {
    ("mlp_in", "sum_sq"): [[9, 0, 9, 16], [16, 9, 0, 9]],
    ("neuron", "sum_abs"): [[10, 30], [40, 30]],
    ("topics", "count"): [4, 0, 16],
}
GATE = "model.layers.0.mlp.gate_proj"


@pytest.fixture
def stats(tmp_path):
    entry = artifacts.module(GATE, "mlp", (2, 4), "mlp_in", "neuron", "row")
    directory = artifacts.statistics(tmp_path, SUMS, [entry], {f"{GATE}.row_sum_abs": [1, 2]}).directory
    return neuronrank.open_statistics(directory)


def test_an_array_says_what_it_is_before_it_is_read(stats):
    array = stats.arrays["mlp_in/sum_sq"]
    assert (array.axes, array.shape) == (("layer", "document", "channel"), (1, 2, 4))
    assert (array.dtype, array.units, array.derived) == (np.float32, "activation^2", False)
    assert array.definition == "a^2 over the tokens of each document"
    assert stats["neuron/df_count"].derived
    assert list(stats.arrays) == list(stats)
    assert "neuron/tf_sum [layer 1, channel 2] float64, activation: |a| over all calibration tokens" in str(stats)


def test_values_are_those_that_were_written(stats):
    assert stats["mlp_in/sum_sq"][0, 1].tolist() == [16, 9, 0, 9]
    assert stats["mlp_in/wanda_sum_sq"][0].tolist() == [25, 9, 9, 25]
    assert np.asarray(stats["topics/count"]).tolist() == [[4, 0, 16]]
    assert stats.weights[f"{GATE}.row_sum_abs"].tolist() == [1, 2]
    assert list(stats.weights) == [f"{GATE}.row_sum_abs"]
    assert stats.modules[GATE].shape == (2, 4)
    assert stats.taps == ["mlp_in", "neuron"]
    assert stats.manifest["model"]["fingerprint"] == "f" * 64
    assert stats.tap(0, "neuron").total("sum_abs").tolist() == [50, 60]


def test_an_edit_in_place_is_refused_or_stays_outside(stats):
    """What is kept and handed out again must not be the reader's to change."""
    kept = [
        stats.tap(0, "mlp_in").documents("sum_sq"),
        stats.tap(0, "neuron").total("sum_abs"),
        stats.tap(0, "neuron", 1).documents("sum_abs"),
        stats.weights[f"{GATE}.row_sum_abs"],
    ]
    before = [values.copy() for values in kept]
    for values in kept:
        with pytest.raises(ValueError, match="read-only"):
            values *= 2
    again = stats.weights[f"{GATE}.row_sum_abs"]
    assert [values.tolist() for values in (*kept[:3], again)] == [values.tolist() for values in before]
    own = stats["mlp_in/sum_sq"][0]
    own += 1  # read for the caller alone
    assert stats["mlp_in/sum_sq"][0, 0].tolist() == [9, 0, 9, 16]
    stats.manifest["model"]["fingerprint"] = "0" * 64
    stats.manifest["arrays"].clear()
    stats.manifest["modules"][0]["name"] = "x"
    assert stats._statistics.manifest["model"]["fingerprint"] == "f" * 64
    assert stats.taps == ["mlp_in", "neuron"]
    assert stats["mlp_in/wanda_sum_sq"][0].tolist() == [25, 9, 9, 25]


INDEXES = [1, -1, np.int64(0), slice(None), slice(1, None), slice(None, None, -1), slice(None, None, -2), slice(5, 2)]
INDEXES += [(1, 3), (0, slice(2, 5), 7), (slice(None), 2), (Ellipsis, 0), ([1, 0], 3), np.array([True, False]), ()]


@pytest.mark.parametrize("index", INDEXES, ids=str)
@pytest.mark.parametrize("path", ["neuron/sum_abs", "neuron/tf_sum", "token_ids"])
def test_indexing_gives_what_numpy_gives(finished_project, path, index):
    whole = zarr.open_group(finished_project.statistics / "taps.zarr", mode="r")[path][:]
    if isinstance(index, tuple) and len(index) > whole.ndim:
        index = index[: whole.ndim]
    if isinstance(index, np.ndarray):
        index = np.resize(index, len(whole))
    found = neuronrank.open_statistics(str(finished_project.statistics))[path][index]
    assert found.shape == np.asarray(whole[index]).shape
    np.testing.assert_array_equal(found, whole[index])


def test_only_the_layer_that_is_asked_for_is_read(project):
    shutil.rmtree(project.statistics / "taps.zarr/neuron/sum_abs/c/0")
    array = neuronrank.open_statistics(project.statistics)["neuron/sum_abs"]
    assert array[1].shape == (12, 40)
    with pytest.raises(ArtifactError, match="neuron/sum_abs/c/0/0/0: missing, although the manifest lists it"):
        array[0]


def test_a_layer_that_is_not_there_ends_a_loop(finished_project):
    array = neuronrank.open_statistics(finished_project.statistics)["neuron/tf_sum"]
    assert [layer.shape for layer in array] == [(40,), (40,)]
    with pytest.raises(IndexError, match="index 2 is outside axis 'layer' of 2"):
        array[2]
    with pytest.raises(IndexError):
        array[-3]


@pytest.mark.parametrize("layer", [-1, 1, 7])
def test_a_tap_of_a_layer_that_is_not_there_is_refused(stats, layer):
    refused(ArtifactError, lambda: stats.tap(layer, "neuron"), f"has no layer {layer}; its layers are 0 to 0")


def test_what_lies_along_an_axis_has_names(finished_project):
    stats = neuronrank.open_statistics(finished_project.statistics)
    assert stats.names_on("layer") == [0, 1]
    origins = stats.names_on("document")
    assert len(origins) == stats["token_ids"].shape[0]
    assert set(origins[0]) == {"document", "source", "offset_tokens"}
    classes = stats.names_on("class")
    ids, count = np.unique(stats["token_ids"][:], return_counts=True)
    frequent = dict(zip(ids.tolist(), count.tolist(), strict=True))
    assert [frequent[one] for one in classes[:-1]] == stats["classes/count"][:-1].tolist()
    assert classes[-1] is None
    assert len(classes) == stats["neuron/class_sum"].shape[stats["neuron/class_sum"].axes.index("class")]
    assert len(stats.names_on("bin")) == stats["neuron/sketch_count"].shape[-1]
    assert stats.names_on("bin")[0] == (0.0, 2.0**-24)
    assert stats.names_on("quantile")[-1] == 0.99
    for axis in ("channel", "expert", "nonsense"):
        with pytest.raises(UnknownName, match=f"axis {axis!r} has no names here"):
            stats.names_on(axis)


def refused(error, access, *parts):
    with pytest.raises(error) as caught:
        access()
    for part in parts:
        assert part in str(caught.value)


def test_a_name_that_is_not_there_is_refused_with_the_nearest(stats, tmp_path):
    near = "no array 'mlp_in/wanda_sumsq', did you mean 'mlp_in/wanda_sum_sq'?; it holds mlp_in/sum_sq"
    refused(UnknownName, lambda: stats["mlp_in/wanda_sumsq"], near)
    refused(UnknownName, lambda: stats["nonsense"], "it holds arrays of mlp_in, neuron, topics")
    refused(UnknownName, lambda: stats["neuron.3/sum_abs"], "did you mean 'neuron/sum_abs'?")
    refused(UnknownName, lambda: stats["neuron.x/sum_abs"], "did you mean 'neuron/sum_abs'?")
    refused(
        UnknownName,
        lambda: stats.weights[f"{GATE}.row_sum_bas"],
        f"did you mean '{GATE}.row_sum_abs'?",
        "names are <module>",
    )
    refused(ArtifactError, lambda: neuronrank.open_statistics(tmp_path / "nowhere"), "manifest.json: not found")
    refused(ArtifactError, lambda: stats.names_on("document"), "its manifest has no calibration.origins")
    assert "neuron/tf_sum" in stats
    assert "neuron/gram" not in stats
    assert 3 not in stats


def test_an_array_that_another_setting_keeps_is_refused_with_that_setting(tmp_path):
    stats = neuronrank.open_statistics(artifacts.statistics(tmp_path, SUMS, [], profile="lean").directory)
    refused(
        ArtifactError,
        lambda: stats["neuron/sketch_count"],
        "profile 'lean' keeps no neuron/sketch_count, which is needed. Set collect.profile: standard",
    )
    stats._statistics.manifest["collect"]["classes"] = 0
    refused(ArtifactError, lambda: stats["classes/count"], "collected with collect.classes: 0, raise it")
    refused(ArtifactError, lambda: stats.names_on("class"), "collected with collect.classes: 0, raise it")


def test_an_array_whose_group_was_not_written_is_listed_when_the_next_run_ends(tmp_path):
    """As a full disk may leave them: of two files that are written at once, one."""
    artifacts.statistics(tmp_path, {("mlp_in", "sum_sq"): [[1, 2, 3]]}, [])
    (tmp_path / "artifact/taps.zarr/mlp_in/zarr.json").unlink()
    again = artifacts.statistics(tmp_path, {("mlp_in", "sum_sq"): [[1, 2, 3]]}, [])
    assert "sum_sq" in again.manifest["arrays"]["mlp_in"]


def test_one_expert_is_read_by_its_number(tmp_path):
    """Two layers, two experts of three channels: expert e of layer l has 10 l + e + 1 times (1, 2, 3)."""
    modules = [artifacts.module(f"m.{e}", "mlp", (3, 3), f"mlp_in.{e}", f"neuron.{e}", "row") for e in range(2)]
    writer = StatisticsWriter(tmp_path, 2, "full")
    for layer in range(2):
        values = {
            (f"mlp_in.{e}", "sum_sq"): np.full((4, 1), 10 * layer + e + 1, np.float32) * np.float32([1, 2, 3])
            for e in range(2)
        }
        routed = {(f"mlp_in.{e}", "n_tokens"): np.full(4, e + 1, np.int32) for e in range(2)}
        writer.write_layer(layer, values | routed, {})
    calibration = {"n_windows": 4, "window_tokens": 5, "sha256": "c" * 64}
    collected = {"dtype": "float32", "propagation": "dense"}
    about = {
        "model": {"fingerprint": "f" * 64},
        "calibration": calibration,
        "collect": collected,
        "n_layers": 2,
        "modules": modules,
        "lm_head": {},
    }
    writer.finish(about)
    stats = neuronrank.open_statistics(tmp_path / "artifact")
    assert stats["mlp_in/wanda_sum_sq"].axes == ("layer", "expert", "channel")
    one = stats["mlp_in.1/wanda_sum_sq"]
    assert (one.axes, one.shape) == (("layer", "channel"), (2, 3))
    assert one[1].tolist() == [4 * 12, 4 * 24, 4 * 36]
    assert one[:, 2].tolist() == [4 * 6, 4 * 36]
    assert stats["mlp_in.1/sum_sq"][1, 3].tolist() == [12, 24, 36]
    assert stats.names_on("expert") == [0, 1]
    assert stats.taps == ["mlp_in"]
    refused(UnknownName, lambda: stats["mlp_in.2/wanda_sum_sq"], "did you mean 'mlp_in/wanda_sum_sq'?")


def test_reading_goes_through_the_checks_of_the_stages(stats, monkeypatch):
    def refuse(self, array, layers):
        raise ArtifactError("checked")

    monkeypatch.setattr(statistics_store.Statistics, "_read", refuse)
    refused(ArtifactError, lambda: stats["neuron/tf_sum"][0], "checked")


def test_the_package_loads_nothing_and_reading_loads_no_torch(stats):
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    dependencies = [re.match(r"\w+", one)[0].replace("pyyaml", "yaml") for one in stated]
    script = (
        "import sys, neuronrank;"
        "loaded = {'torch', 'transformers', 'zarr', 'numpy'} & set(sys.modules);"
        "assert not loaded, loaded;"
        f"stats = neuronrank.open_statistics({str(stats.directory)!r});"
        "assert stats['neuron/tf_sum'][0].tolist() == [50, 60];"
        f"assert stats.weights['{GATE}.row_sum_abs'].tolist() == [1, 2];"
        "str(stats), stats.tap(0, 'neuron').total('sum_abs');"
        f"loaded = set({dependencies}) & set(sys.modules);"
        "assert loaded - {'yaml'} == {'numpy', 'zarr', 'safetensors', 'pydantic'}, loaded"  # yaml is read by zarr
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_examples_of_reading_run_and_give_the_axes_that_they_state(finished_project, monkeypatch, capsys):
    monkeypatch.chdir(finished_project.root)
    names: dict = {}
    n_stated = 0
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/READING.md").read_text(), re.DOTALL):
        exec(block, names)
        for line in block.splitlines():
            code, stated, comment = line.partition("  # (")
            if stated and not comment.startswith("low"):
                value = eval(code.partition(" = ")[2] or code, names)
                assert np.ndim(value) == len(comment.partition(")")[0].split(",")), line
                n_stated += 1
    assert n_stated == 9
    shown = capsys.readouterr().out
    assert "('layer', 'channel') (2, 24) float64 activation^2 a^2 over all calibration tokens False" in shown
    assert "did you mean 'neuron/sum_abs'?" in shown
