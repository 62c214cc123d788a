"""Several processes on one collection or evaluation, and artifacts that were collected apart and merged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from neuronrank import collecting
from neuronrank.checkpoint import open_model
from neuronrank.cli import main
from neuronrank.collecting import Setup, collect_statistics
from neuronrank.collection import CollectParams
from neuronrank.errors import MismatchError, ParamsError, SourceError, StorageError
from neuronrank.fetching import fetch_model
from neuronrank.losses import read_losses
from neuronrank.merging import merge_arrays
from neuronrank.merging_artifacts import fitted_on, merge_artifacts
from neuronrank.params import validate
from neuronrank.patterns import read_pattern
from neuronrank.ranks import Ranks
from neuronrank.recipes import read_recipe
from neuronrank.sequential import sequential
from neuronrank.statistics_schema import ARRAYS
from neuronrank.statistics_store import Statistics
from neuronrank.windows import Windows
from tests.imports import ROOT

OPTIONS = {
    "dtype": "float32",
    "documents_per_batch": 2,
    "profile": "full",
    "classes": 6,
    "topics": {"micro_topics": 4, "iterations": 4, "seed": 0},
    "gram": True,
}
N_WINDOWS = 7  # in micro-batches of two: four, the last of one


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    fetched = tmp_path_factory.mktemp("fetched") / "model"
    fetch_model({"source": "path", "path": str(tiny_model)}, fetched)
    return open_model(fetched)


def windows(first: int = 0, last: int = N_WINDOWS) -> Windows:
    tokens = torch.randint(0, 64, (N_WINDOWS, 10), generator=torch.Generator().manual_seed(7), dtype=torch.int32)
    origins = [{"window": n} for n in range(first, last)]
    return Windows(tokens[first:last].numpy(), {"seed": 0, "source": {"source": "files"}, "origins": origins})


def options(**changes) -> CollectParams:
    return validate(CollectParams, {**OPTIONS, **changes}, "collect")


def collected(model, out: Path, first=0, last=N_WINDOWS, on: Path | None = None, **changes) -> Statistics:
    setup = Setup(fitted_on=None if on is None else fitted_on(on, model, options(**changes)))
    collect_statistics(model, windows(first, last), options(**changes), out, setup)
    return Statistics(out)


def arrays(statistics: Statistics) -> dict[str, np.ndarray]:
    return {
        f"{layer}/{group}/{name}": statistics.layer_values(layer, group, name)
        for layer in range(2)
        for group, names in statistics.manifest["arrays"].items()
        if group != "classes"
        for name in names
    }


def require_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], ignored=()) -> None:
    """Documents, counts and labels exactly; sums to 1e-6 of the largest; quadratic discriminants to 1e-4."""
    assert found.keys() == expected.keys()
    for path, values in expected.items():
        name = path.rpartition("/")[2]
        if name in ignored:
            continue
        if ARRAYS[name].axes[0] == "document" or values.dtype.kind in "iu":
            np.testing.assert_array_equal(found[path], values, err_msg=path)
        else:
            # what is divided by the variance of a few like tokens is as exact as that, a difference of float32 sums
            close = 1e-4 if name == "class_qda" else 1e-6
            np.testing.assert_allclose(found[path], values, rtol=close, atol=1e-6 * np.abs(values).max(), err_msg=path)


# Shares


def test_shares_are_whole_batches_side_by_side():
    assert Ranks(1, 3).shares(11, 2) == [slice(0, 4), slice(4, 8), slice(8, 11)]
    assert Ranks(0, 2).shares(7, 3) == [slice(0, 3), slice(3, 7)]
    assert Ranks().shares(11, 2) == [slice(0, 11)]
    assert Ranks(0, 3).shares(2, 2) == [slice(0, 0), slice(0, 0), slice(0, 2)]


def test_more_processes_than_batches_are_refused(model, tmp_path):
    with pytest.raises(ParamsError, match="7 calibration windows, 4 at once, cannot be divided among 3 processes"):
        setup = Setup(ranks=Ranks(0, 3))
        collect_statistics(model, windows(), options(documents_per_batch=4), tmp_path / "out", setup)


def test_sequential_propagation_is_refused_in_several_processes(model, tmp_path):
    recipe = read_recipe({"attention": {"method": "wanda"}, "mlp": {"method": "wanda"}}, "r")
    propagation = sequential(model, recipe, read_pattern({"rule": "unstructured", "sparsity": 0.5}, "p"))
    with pytest.raises(ParamsError, match="runs in one process"):
        collect_statistics(model, windows(), options(), tmp_path / "out", Setup(None, propagation, None, Ranks(0, 2)))


# Merging arrays


def test_squared_deviations_merge_by_hand():
    """Class 0: 1, 3 and 8; class 1: 5 and nothing; the other row: nothing in either part."""
    one = {("neuron", "class_sum"): np.array([[4.0], [5.0], [0.0]]), ("neuron", "class_centred_sq"): np.zeros((3, 1))}
    one["neuron", "class_centred_sq"][0] = 2.0
    other = {key: np.zeros((3, 1)) for key in one}
    other["neuron", "class_sum"][0] = 8.0
    merged = merge_arrays([one, other], [np.array([2, 1, 0]), np.array([1, 0, 0])])
    np.testing.assert_allclose(merged["neuron", "class_sum"][:, 0], [12, 5, 0])
    np.testing.assert_allclose(merged["neuron", "class_centred_sq"][:, 0], [9 + 1 + 16, 0, 0])


def test_nearest_tokens_come_by_turns_with_documents_moved():
    nowhere = 2**32 - 1
    one = np.full((1, 3, 2), nowhere, dtype=np.uint32)
    one[0, :2] = [[1, 5], [0, 2]]
    other = np.array([[[0, 9], [2, 4], [1, 1]]], dtype=np.uint32)
    labels = {("topics", "labels"): np.zeros((4, 6), dtype=np.uint16)}
    parts = [{("topics", "nearest"): one, **labels}, {("topics", "nearest"): other, **labels}]
    assert merge_arrays(parts, [])["topics", "nearest"].tolist() == [[[1, 5], [4, 9], [0, 2]]]


# Merging artifacts


@pytest.fixture(scope="module")
def first_half(model, tmp_path_factory) -> Path:
    return collected(model, tmp_path_factory.mktemp("first") / "statistics", 0, 4).directory


def test_two_halves_merge_into_the_whole(model, first_half, tmp_path):
    second = collected(model, tmp_path / "second", 4, 7, on=first_half)
    merged = merge_artifacts([first_half, second.directory], tmp_path / "merged")
    whole = collected(model, tmp_path / "whole", on=first_half)
    found = Statistics(tmp_path / "merged")
    require_same(arrays(found), arrays(whole), ignored=("nearest",))
    assert found.class_count().tolist() == whole.class_count().tolist()
    np.testing.assert_array_equal(found.token_ids(), windows().token_ids)
    assert merged["calibration"]["sha256"] == whole.manifest["calibration"]["sha256"]
    assert merged["calibration"]["origins"] == whole.manifest["calibration"]["origins"]
    assert merged["modules"] == whole.manifest["modules"]
    for module in whole.modules:
        np.testing.assert_array_equal(
            found.weight_sums(module.name, "row_sum_sq"), whole.weight_sums(module.name, "row_sum_sq")
        )


def test_halves_of_other_profiles_merge_and_score_as_the_whole(model, tmp_path):
    from neuronrank.scores import compute_factors

    recipe = read_recipe({"attention": {"method": "wanda"}, "mlp": {"method": "wanda"}}, "recipe")
    for profile in ("wanda", "standard"):
        directory = tmp_path / profile
        one = collected(model, directory / "one", 0, 4, profile=profile)
        other = collected(model, directory / "other", 4, 7, on=one.directory, profile=profile)
        merge_artifacts([one.directory, other.directory], directory / "merged")
        whole = collected(model, directory / "whole", on=one.directory, profile=profile)
        found, expected = (compute_factors(s, recipe) for s in (Statistics(directory / "merged"), whole))
        for name, factor in expected.items():
            np.testing.assert_allclose(found[name], factor, rtol=1e-6, err_msg=name)


def test_a_merge_that_was_interrupted_goes_on(model, first_half, tmp_path, monkeypatch):
    second = collected(model, tmp_path / "second", 4, 7, on=first_half).directory
    from neuronrank import merging_artifacts

    merge, calls = merge_arrays, []

    def once(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("stop")
        return merge(*arguments)

    monkeypatch.setattr(merging_artifacts, "merge_arrays", once)
    with pytest.raises(RuntimeError, match="stop"):
        merge_artifacts([first_half, second], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    merge_artifacts([first_half, second], tmp_path / "merged")
    assert len(calls) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "second"]


def test_a_merge_that_other_code_began_begins_anew(model, first_half, tmp_path, monkeypatch):
    second = collected(model, tmp_path / "second", 4, 7, on=first_half).directory
    from neuronrank import merging_artifacts, provenance

    merge, calls = merge_arrays, []

    def once(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("stop")
        return merge(*arguments)

    monkeypatch.setattr(merging_artifacts, "merge_arrays", once)
    with monkeypatch.context() as earlier:
        earlier.setattr(provenance, "versions", lambda: {"numpy": "of last year"})
        with pytest.raises(RuntimeError, match="stop"):
            merge_artifacts([first_half, second], tmp_path / "merged")
    merge_artifacts([first_half, second], tmp_path / "merged")
    assert len(calls) == 4  # both layers
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "second"]


class _Second:
    """The second of two processes; the first one is a script."""

    rank, first = 1, False

    def __init__(self, work: Path, n_complete: int) -> None:
        self.work, self.n_complete, self.seen = work, n_complete, []

    def text_from_first(self, _text):
        return str(self.work)

    def number_from_first(self, _number):
        return self.n_complete

    def all_hold(self, holds):
        self.seen.append(holds)
        return holds

    def wait(self):
        self.seen.append((self.work / "rank-1/hidden-0.bin").exists())


def test_hidden_states_stay_until_the_first_process_has_finished(tmp_path):
    """Killed while it writes the last arrays, no layer is run again."""
    second = _Second(tmp_path / "work", 0)

    def layers(work, _writer):
        (work / "rank-1").mkdir(parents=True)
        (work / "rank-1/hidden-0.bin").touch()
        return iter([1, 2])

    collecting._assist(second, layers)
    assert second.seen == [True]
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(("n_complete", "goes_on_with"), [(2, 2), (1, 0)])
def test_hidden_states_are_needed_only_for_layers_that_are_left(tmp_path, n_complete, goes_on_with):
    """This process has none: it was on a machine that started anew."""
    second = _Second(tmp_path / "work", n_complete)
    assert collecting._agreed(second, tmp_path / "work/rank-1", None, 2) == goes_on_with
    assert second.seen == [n_complete == 2]


def test_what_does_not_fit_together_is_refused(model, first_half, tmp_path):
    own = collected(model, tmp_path / "own", 4, 7).directory
    with pytest.raises(MismatchError, match=r"token classes differ.*--fitted-on"):
        merge_artifacts([first_half, own], tmp_path / "merged")
    alike = collected(model, tmp_path / "own classes", 4, 7, classes=0).directory
    none = collected(model, tmp_path / "no classes", 0, 4, classes=0).directory
    with pytest.raises(MismatchError, match=r"topics/centroids: differs between the parts"):
        merge_artifacts([none, alike], tmp_path / "merged")
    with pytest.raises(MismatchError, match=r"window 0 is window 0 of .*; it would count twice"):
        merge_artifacts([first_half, first_half], tmp_path / "merged")
    lean = [collected(model, tmp_path / f"lean{n}", 4 * n, 4 + 3 * n, profile="lean").directory for n in range(2)]
    with pytest.raises(MismatchError, match=r"profile 'lean' keeps of .* does not add"):
        merge_artifacts(lean, tmp_path / "merged")
    with pytest.raises(MismatchError, match="cannot be merged with what is collected here: classes 6 there, 5 here"):
        fitted_on(first_half, model, options(classes=5))
    assert not (tmp_path / "merged").exists()


def test_nothing_that_is_there_is_merged_or_collected_over(model, first_half, tmp_path):
    second = collected(model, tmp_path / "second", 4, 7, on=first_half).directory
    for out in (second, tmp_path):
        with pytest.raises(SourceError, match="already exists; choose another place"):
            merge_artifacts([first_half, second], out)
    assert Statistics(second).n_documents == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("precious")
    with pytest.raises(StorageError, match=r"mine: exists and is no statistics artifact\. Choose another place"):
        collected(model, tmp_path / "mine")
    assert (tmp_path / "mine/file").read_text() == "precious"


def test_dense_and_layer_by_layer_statistics_are_not_merged(model, first_half, tmp_path):
    recipe = read_recipe({"attention": {"method": "wanda"}, "mlp": {"method": "wanda"}}, "r")
    propagation = sequential(model, recipe, read_pattern({"rule": "unstructured", "sparsity": 0.5}, "p"))
    collect_statistics(model, windows(4, 7), options(), tmp_path / "other", Setup(propagation=propagation))
    for parts in ([first_half, tmp_path / "other"], [tmp_path / "other", first_half]):
        with pytest.raises(MismatchError, match=r"propagation.* differ\. Only dense statistics of one model can be"):
            merge_artifacts(parts, tmp_path / "merged")


def test_stages_that_do_not_divide_are_refused_under_torchrun(project, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = project.score("wanda")
    assert done.exit_code == 1
    assert "score runs in one process; only collect and eval run under torchrun" in done.output


def test_the_command_merges(model, first_half, tmp_path):
    second = collected(model, tmp_path / "second", 4, 7, on=first_half).directory
    done = CliRunner().invoke(main, ["merge", str(first_half), str(second), "--out", str(tmp_path / "merged")])
    assert done.exit_code == 0, done.output
    assert "statistics of 7 windows" in done.output
    refused = CliRunner().invoke(main, ["merge", str(second), str(second), "--out", str(tmp_path / "other")])
    assert refused.exit_code == 1
    assert "Error: " in refused.output


# Processes


def torchrun(n: int, module: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    # As many threads as here: another number may change the last bits of a matrix product.
    n_threads, paths = str(torch.get_num_threads()), f"{ROOT / 'pipeline'}:{ROOT}"
    environment = {**os.environ, "OMP_NUM_THREADS": n_threads, "PYTHONPATH": paths}
    return subprocess.run(
        [*command, "-m", module, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_two_processes_collect_and_evaluate_what_one_does(project):
    collect = ["--model", str(project.artifacts / "model"), "--tokens", str(project.artifacts / "tokens/calibration")]
    common = ["--params", str(project.params)]
    out, metrics = project.root / "shared/statistics", project.root / "shared.json"
    done = torchrun(2, "stages.collect", *collect, "--out", str(out), "--metrics", str(metrics), *common)
    assert done.returncode == 0, done.stderr[-3000:]
    require_same(arrays(Statistics(out)), arrays(Statistics(project.statistics)))
    assert [path.name for path in out.parent.iterdir()] == ["statistics"]
    assert json.loads(metrics.read_text())["calibration_tokens"] == 12 * 16
    losses = project.root / "losses.safetensors"
    evaluate = ["--model", str(project.artifacts / "model"), "--tokens", str(project.artifacts / "tokens/evaluation")]
    done = torchrun(2, "stages.eval", *evaluate, "--losses", str(losses), "--metrics", str(metrics), *common)
    assert done.returncode == 0, done.stderr[-3000:]
    for text, expected in read_losses(project.artifacts / "losses/dense.safetensors").items():
        np.testing.assert_allclose(read_losses(losses)[text], expected, rtol=1e-6)
