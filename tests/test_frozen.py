"""Artifacts that an earlier commit wrote are read by today's code as they were meant."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from neuronrank.checkpoint import open_model
from neuronrank.derived import OF_CLASSES
from neuronrank.losses import read_losses, read_losses_header
from neuronrank.mask_store import MaskFile
from neuronrank.recipes import read_recipe
from neuronrank.score_store import read_scores
from neuronrank.scores import compute_factors
from neuronrank.sketch import EDGES, MagnitudeSketch
from neuronrank.statistics_store import Statistics
from neuronrank.topic_merging import TopicSums
from neuronrank.verifying import verify
from neuronrank.windows import read_windows

MODEL = Path(__file__).parent / "frozen" / "model-2"
"""A model whose tensors count 1, 2, 3, … in eighths; two of its weights are pruned."""
FROZEN = Path(__file__).parent / "frozen" / "statistics-5"
"""Sums of squares of documents are 1 + channel + document: 6, 9 and 12 over three documents."""


def test_the_frozen_artifacts_are_whole_and_made_from_each_other():
    found = verify([FROZEN])
    assert not [finding.line() for finding in found if finding.is_fault]
    links = [finding.what.partition(" (")[0] for finding in found if finding.what.startswith("made from s")]
    statistics, scores = (
        f"made from statistics {FROZEN / 'statistics'}",
        f"made from scores {FROZEN}/scores.safetensors",
    )
    assert sorted(links) == sorted([scores, statistics, statistics])
    assert sum(path.stat().st_size for path in FROZEN.rglob("*") if path.is_file()) < 150_000


def test_the_frozen_statistics_are_read():
    opened = Statistics(FROZEN / "statistics")
    assert opened.manifest["schema"] == "neuronrank.statistics/5"
    assert opened.n_documents == 3
    assert opened.layer_values(0, "mlp_in", "sum_sq").tolist() == [[1, 2], [2, 3], [3, 4]]
    assert opened.layer_values(0, "mlp_mid", "wanda_sum_sq").tolist() == [6, 9, 12]
    assert opened.tap(0, "mlp_mid", 2).total("sum_sq").tolist() == [3, 5, 7]
    assert opened.weight_sums("down", "row_sum_sq").tolist() == [3, 18]
    assert opened.weight_sums("gate", "column_max_abs").tolist() == [3, 2]


def test_the_frozen_scores_are_read_and_are_still_computed():
    held, header = read_scores(FROZEN / "scores.safetensors")
    assert header["schema"] == "neuronrank.scores/4"
    assert header["parts"]["mlp"]["method"] == "wanda"
    assert held.keys() == {"gate.column", "down.column"}
    # Wanda's norm over all tokens; a mean over the 30 tokens would be a factor of 5.5 smaller.
    assert held["gate.column"] == pytest.approx([6**0.5, 3.0], rel=1e-6)
    assert held["down.column"] == pytest.approx([6**0.5, 3.0, 12**0.5], rel=1e-6)
    recipe = read_recipe({"attention": {"method": "none"}, "mlp": {"method": "wanda"}}, "recipes.wanda")
    for name, vector in compute_factors(Statistics(FROZEN / "statistics"), recipe).items():
        np.testing.assert_array_equal(vector, held[name])


def test_the_frozen_mask_is_read():
    masks = MaskFile(FROZEN / "mask.safetensors")
    assert masks.header["schema"] == "neuronrank.masks/4"
    assert masks.keep("gate.weight").astype(int).tolist() == [[0, 1], [1, 0], [0, 1]]
    assert masks.keep("down.weight").astype(int).tolist() == [[0, 1, 1], [1, 0, 1]]
    assert masks.header["sparsity"]["selected"] == pytest.approx(5 / 12)


def test_the_frozen_model_and_its_export_are_whole_and_made_from_each_other():
    found = verify([MODEL])
    assert not [finding.line() for finding in found if finding.is_fault]
    links = [finding.what.partition(" (")[0] for finding in found if finding.what.startswith("made from ")]
    made = f"made from model {MODEL}/model"
    assert sorted(links) == [f"made from masks {MODEL}/mask.safetensors", made, made, made]


def test_the_frozen_model_is_read():
    model = open_model(MODEL / "model")
    assert model.description["schema"] == "neuronrank.model/2"
    assert model.fingerprint == "145c988b937172b1371ff5382fe77e57471c9559ba8266d8255ec59906b5b388"
    weight = model.checkpoint().tensor("model.layers.0.mlp.down_proj.weight")
    assert weight.tolist() == (np.arange(1, 25) / 8).reshape(4, 6).tolist()


def test_the_frozen_windows_and_losses_are_read():
    windows = read_windows(MODEL / "windows.safetensors")
    assert windows.token_ids.tolist() == [[0, 1, 2], [5, 6, 7]]
    assert windows.sha256 == hashlib.sha256(np.array([0, 1, 2, 5, 6, 7], dtype="<i4").tobytes()).hexdigest()
    assert read_losses(MODEL / "losses.safetensors")["frozen"].tolist() == [1.0, 3.0]
    assert read_losses_header(MODEL / "losses.safetensors")["schema"] == "neuronrank.losses/2"


def test_the_frozen_export_holds_the_model_without_the_pruned_weights():
    assert json.loads((MODEL / "export/neuronrank.json").read_text())["schema"] == "neuronrank.export/1"
    expected = (np.arange(1, 25) / 8).reshape(4, 6)
    expected[1, 2] = expected[3, 5] = 0
    exported = load_file(MODEL / "export/model.safetensors")
    assert exported["model.layers.0.mlp.down_proj.weight"].tolist() == expected.tolist()
    assert exported["model.norm.weight"].tolist() == [0.125, 0.25, 0.375, 0.5]


FULL = [FROZEN.with_name("statistics-5-full") / which for which in ("first", "with_discriminant")]
"""Two documents of five tokens of two channels, as tests/frozen/make_full.py has them; the earlier lacks one array.

Channel 0: 1 -1 2 4 0.5, 1 2 -2 8 -0.5; channel 1: 2 2 -4 4 1, 4 4 8 -8 16. Each document has two tokens of a class, two
of another and one of all others: sums 3, 12, 0 and 12, 0, 17; means 0.75, 3, 0 and 3, 0, 8.5; shares 0.4, 0.4, 0.2.
"""
REST = {"rel": 1e-6}


@pytest.fixture(params=FULL, ids=lambda path: path.name)
def full(request) -> Statistics:
    return Statistics(request.param)


def test_the_full_statistics_are_whole_and_one_lacks_what_was_added():
    for path in FULL:
        assert not [finding.line() for finding in verify([path]) if finding.is_fault]
        assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 60_000
    assert [(path / "taps.zarr/neuron/class_pca_qda").exists() for path in FULL] == [False, True]


def test_frozen_sums_are_read(full):
    neuron = full.tap(0, "neuron", 2)
    assert neuron.documents("sum").tolist() == [[6.5, 5], [8.5, 24]]
    assert neuron.documents("sum_abs").tolist() == [[8.5, 13], [13.5, 40]]
    assert neuron.total("max_abs").tolist() == [8, 16]
    assert neuron.n_positive().tolist() == [7, 8]
    assert full.layer_values(0, "neuron", "total_min").tolist() == [-2, -8]
    # Mean |a| by document: 1.7 2.6, 2.7 8; their 0.6 quantile is 2.68.
    assert neuron.document_frequency(0.6).tolist() == [1, 1]


def test_frozen_sketches_are_read(full):
    neuron = full.tap(0, "neuron", 2)
    sketch = neuron.sketch()
    # |a|: 0.5 0.5 1 1 1 2 2 2 4 8, and 1 2 2 4 4 4 4 8 8 16.
    assert sketch.count.sum(axis=1).tolist() == [10, 10]
    assert sketch.quantile(0.5).tolist() == pytest.approx([1.5, 4], rel=0.022)
    # Of all 20 values 11 are at most 2 and 16 at most 4: 2 is nearest to the 0.6 quantile.
    above = neuron.of_sketch(MagnitudeSketch.count_above_pooled, quantile=0.6)
    assert above.tolist() == [2, 7]
    assert neuron.of_sketch(MagnitudeSketch.count_above_mean, factor=1.0).tolist() == [2, 3]  # means 2.2, 5.3
    assert neuron.of_sketch(MagnitudeSketch.top_mean, quantile=0.9).tolist() == pytest.approx([8, 16], rel=0.04)
    negative = full.layer_values(0, "neuron", "sketch_negative_count")
    edges = [[float(EDGES[b]) for b in np.flatnonzero(row)] for row in negative]
    assert edges == [[0.5, 1, 2], [4, 8]]


def test_frozen_classes_are_read(full):
    classes = full.tap(0, "neuron", 2).classes(2)
    assert classes.count.tolist() == [4, 4, 2]
    assert classes.sum.tolist() == [[3, 12], [12, 0], [0, 17]]
    assert classes.centred_sq.tolist() == [[4.75, 4], [52, 160], [0.5, 112.5]]
    # Joint means 1.5 and 2.9.
    between = [0.4 * 0.75**2 + 0.4 * 1.5**2 + 0.2 * 1.5**2, 0.4 * 0.1**2 + 0.4 * 2.9**2 + 0.2 * 5.6**2]
    within = [0.1 * (4.75 + 52 + 0.5), 0.1 * (4 + 160 + 112.5)]
    found = {one.array: full.tap(0, "neuron", 2).of_classes(one.compute, 2, **one.settings) for one in OF_CLASSES}
    assert found["class_between"].tolist() == pytest.approx(between, **REST)
    assert found["class_within"].tolist() == pytest.approx(within, **REST)
    assert found["class_mean_variance"].tolist() == pytest.approx([1.125**2, 1.5**2], **REST)
    by_class = [0.225 / 1.1875 + 0.9 / 13 + 0.45 / 0.25, 0.004 / 1 + 3.364 / 40 + 6.272 / 56.25]
    assert found["class_qda"].tolist() == pytest.approx(by_class, **REST)
    assert found["class_pca_qda"].tolist() == pytest.approx(discriminant_on_components(), **REST)


def discriminant_on_components() -> list[float]:
    """Both principal components of the means, by the angle that makes their covariance diagonal."""
    share = [0.4, 0.4, 0.2]
    deviation = [(-0.75, 0.1), (1.5, -2.9), (-1.5, 5.6)]
    variance = [(1.1875, 1.0), (13.0, 40.0), (0.25, 56.25)]
    angle = math.atan2(2 * -3.45, 1.575 - 9.64) / 2  # sums of p d_0 d_1, of p d_0^2 and of p d_1^2
    found = [0.0, 0.0]
    for u in ((math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))):
        score = sum(
            p * (u[0] * d[0] + u[1] * d[1]) ** 2 / (u[0] ** 2 * v[0] + u[1] ** 2 * v[1])
            for p, d, v in zip(share, deviation, variance, strict=True)
        )
        found = [found[c] + u[c] ** 2 * score for c in range(2)]
    return found


def test_frozen_topics_are_read(full):
    # Four, four and two tokens: |a| sums to 6, 15, 1 and 14, 22, 17.
    neuron = full.tap(0, "neuron", 2)
    assert neuron.topics(3, "sum_abs").sums.tolist() == [[6, 14], [15, 22], [1, 17]]
    means = neuron.of_topics(TopicSums.mean_of_means, 3)
    assert means.tolist() == pytest.approx([(1.5 + 3.75 + 0.5) / 3, (3.5 + 5.5 + 8.5) / 3], **REST)
    # The 0.6 quantile of the six means is 3.75, the fourth of them.
    assert neuron.of_topics(TopicSums.frequency, 3, quantile=0.6).tolist() == [1, 2]
    assert neuron.topic_count(2).tolist() == [8, 2]  # the first two topics merge first
    assert neuron.topics(2, "sum_abs").sums.tolist() == [[21, 36], [1, 17]]
    assert full.layer_values(0, "topics", "labels").tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 1, 2]]
