"""Artifacts that an earlier commit wrote are read by today's code as they were meant."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from neuronrank.checkpoint import open_model
from neuronrank.losses import read_losses, read_losses_header
from neuronrank.mask_store import MaskFile
from neuronrank.recipes import read_recipe
from neuronrank.score_store import read_scores
from neuronrank.scores import compute_factors
from neuronrank.statistics_store import Statistics
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
