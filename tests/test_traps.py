"""Faults seen in public implementations of pruning (docs/TRAPS.md): each test asserts a value that one gets wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from neuronrank.checkpoint import Checkpoint, open_model
from neuronrank.collection import CollectParams, collect_layers, find_classes
from neuronrank.files import sha256_file
from neuronrank.patterns import read_pattern
from neuronrank.pruning import iter_masks
from neuronrank.recipes import read_recipe
from neuronrank.score_store import read_scores, write_scores
from neuronrank.scores import compute_factors
from neuronrank.statistics_schema import ARRAYS
from neuronrank.streaming import StreamedModel
from neuronrank.topics import PROJECTED_WIDTH, projection
from neuronrank.windows import read_windows
from tests import artifacts, naive
from tests.project import Project, tiny_params

HIDDEN = 24
"""A root-mean-square norm makes the squares of a token's 24 channels add up to 24: so `mlp_in` counts tokens."""


def collect(directory, token_ids, dtype="float32"):
    topics = {"micro_topics": 2, "iterations": 4, "seed": 0}
    settings = {"dtype": dtype, "documents_per_batch": 16, "profile": "full", "classes": 3, "topics": topics}
    params = CollectParams.model_validate(settings)
    model = StreamedModel(Checkpoint(directory), getattr(torch, dtype), torch.device("cpu"))
    return list(collect_layers(model, token_ids, params, find_classes(token_ids, params)))


def tokens(n_documents: int, n_tokens: int) -> torch.Tensor:
    return torch.randint(64, (n_documents, n_tokens), generator=torch.Generator().manual_seed(3))


def test_more_than_128_sequences_are_all_counted(tiny_model):
    for layer in collect(tiny_model, tokens(131, 3)):
        sums = layer.arrays["mlp_in", "sum_sq"]
        assert sums.shape == (131, HIDDEN)  # a buffer of 128 sequences would end before
        np.testing.assert_allclose(sums.sum(axis=1), 3 * HIDDEN, rtol=1e-3)


@pytest.mark.parametrize("n_tokens", [3, 200])
def test_means_divide_by_the_tokens_that_there_were(tmp_path, monkeypatch, n_tokens):
    monkeypatch.setattr(artifacts, "WINDOW_TOKENS", n_tokens)
    up = artifacts.module("up", "mlp", (2, 4), "mlp_in", "neuron", "row")
    sums = {("neuron", "sum_abs"): [[2.0 * n_tokens, 5.0 * n_tokens], [4.0 * n_tokens, 7.0 * n_tokens]]}
    opened = artifacts.statistics(tmp_path, sums, [up])
    part = {"method": "neuronrank_tfidf", "idf_exp": 0.0}
    factors = compute_factors(opened, read_recipe({"attention": part, "mlp": part}, "recipes.test"))
    assert factors["up.row"].tolist() == [3, 6]  # over 128 tokens a document: 3 * T / 128, 6 * T / 128


def test_a_tap_that_feeds_three_modules_is_counted_once(tiny_model):
    for layer in collect(tiny_model, tokens(5, 11)):
        assert len(layer.arrays["attn_in", "sum_abs"]) == 5  # q, k and v read it: 15 documents
        assert (layer.arrays["attn_in", "sketch_count"].sum(axis=1) == 55).all()
        assert layer.arrays["attn_in", "sum_sq"].sum() == pytest.approx(55 * HIDDEN, rel=1e-3)


def test_sums_do_not_stand_still_in_half_precision(tiny_model):
    # In bfloat16 256 + 1 is 256: the sum of squares of a channel, about 1 a token, would never get beyond that.
    for layer in collect(tiny_model, tokens(1, 600), dtype="bfloat16"):
        assert layer.arrays["mlp_in", "sum_sq"].max() > 257
        assert layer.arrays["mlp_in", "sum_sq"].sum() == pytest.approx(600 * HIDDEN, rel=0.01)


# Three topics of 10, 20 and 10 tokens; topic means of neuron 0: 1, 4, 1; of neuron 1: 3, 3, 9. Pooled and sorted
# 1 1 3 3 4 9, of which the 0.6 quantile is 3: DF is 1 and 3 topics, IDF = ln(4 / (DF + 1)) + 1, TF 2 and 5.
TOPIC_SUMS = [[10, 30], [80, 60], [10, 90]]


def test_topic_frequency_counts_topics_and_not_documents(tmp_path):
    sums = {
        ("neuron", "sum_abs"): [[25, 45]] * 4,  # DF over documents is 0 and 4
        ("neuron", "topic_sum_abs"): TOPIC_SUMS,
        ("topics", "count"): [10, 20, 10],
        ("topics", "merges"): [[0, 1], [2, 3]],
    }
    up = artifacts.module("up", "mlp", (2, 4), "mlp_in", "neuron", "row")
    opened = artifacts.statistics(tmp_path, sums, [up])
    part = {"method": "neuronrank_tfidf", "mode": "topic", "topics": 3}
    factors = compute_factors(opened, read_recipe({"attention": part, "mlp": part}, "recipes.test"))
    # documents over topics: IDF would be ln((3 + 1) / (0 + 1)) + 1 = 2.39 and ln((3 + 1) / (4 + 1)) + 1 = 0.78
    np.testing.assert_allclose(factors["up.row"], [2 * (np.log(2) + 1), 5 * 1.0], rtol=1e-6)


def test_every_width_has_a_projection_of_its_own(tiny_model):
    narrow, wide = projection(24, seed=0), projection(40, seed=0)
    assert (narrow.shape, wide.shape) == ((24, PROJECTED_WIDTH), (40, PROJECTED_WIDTH))
    assert not torch.equal(wide[:24], narrow)
    assert wide.square().sum(dim=1).mean() == pytest.approx(1, abs=0.1)  # lengths are kept on average
    for layer in collect(tiny_model, tokens(4, 6)):
        labels = [key for key in layer.arrays if key[1] == "labels"]
        assert labels == [("topics", "labels")]  # of the residual stream, shared by taps 16 to 40 wide
        counts = {tap: values.shape for (tap, name), values in layer.arrays.items() if name == "topic_sum_abs"}
        assert (counts["k_out"], counts["neuron"]) == ((2, 16), (2, 40))


def test_scores_that_are_all_zero_stop_prune_and_keep_the_earlier_mask(project):
    factors, header = read_scores(project.scores("wanda"))
    name = "model.layers.1.mlp.up_proj"
    write_scores(project.scores("wanda"), {**factors, f"{name}.column": factors[f"{name}.column"] * 0}, header)
    before = sha256_file(project.mask("wanda", "50pct"))
    done = project.prune("wanda", "50pct")
    assert done.exit_code == 1
    assert f"{name}: all 960 scores are equal (0.0), they cannot rank" in done.output
    assert sha256_file(project.mask("wanda", "50pct")) == before


def test_layers_before_pruning_last_are_still_forwarded(finished_project, tiny_model):
    factors, header = read_scores(finished_project.scores("wanda"))
    last = {"rule": "unstructured", "sparsity": 0.5, "attention": False, "pruning_last": 1}
    model = open_model(finished_project.artifacts / "model")
    masks = {
        mask.entry["name"]: mask for mask in iter_masks(model, factors, header, read_pattern(last, "patterns.last"))
    }
    assert set(masks) == {f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")}
    token_ids = read_windows(finished_project.artifacts / "tokens/calibration/windows.safetensors").token_ids
    whole = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()
    weight = np.abs(whole.model.layers[1].mlp.up_proj.weight.detach().numpy())
    found = masks["model.layers.1.mlp.up_proj"].keep

    def expected() -> np.ndarray:
        inputs = naive.activations(whole, token_ids, [1])[1, "mlp_in"]
        return naive.mask(weight * naive.wanda_factor(inputs)[None, :], 0.5, "row")

    np.testing.assert_array_equal(found, expected())
    whole.model.layers[0].forward = lambda hidden, *_, **__: hidden  # what the fault does
    assert (found != expected()).any()


def test_windows_are_as_long_as_asked_for_whatever_the_model_could_take(tiny_model, tiny_texts, tmp_path):
    directory = shutil.copytree(tiny_model, tmp_path / "long")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 131072}))
    project = Project(tmp_path, tiny_params(directory, tiny_texts))
    for step in (project.fetch("model"), project.fetch("text"), project.prepare()):
        assert step.exit_code == 0, step.output
    tokens_of = project.artifacts / "tokens"
    assert read_windows(tokens_of / "calibration/windows.safetensors").token_ids.shape == (12, 16)
    assert read_windows(tokens_of / "evaluation/wiki.safetensors").token_ids.shape == (5, 16)


def test_no_stored_field_is_called_norm_and_norms_are_square_roots(tmp_path):
    assert not [name for name in ARRAYS if "norm" in name]
    assert {ARRAYS[name].units for name in ("sum_sq", "wanda_sum_sq", "class_centred_sq")} == {"activation^2"}
    gate = artifacts.module("gate", "mlp", (2, 4), "mlp_in", "neuron", "row")
    sums = {("neuron", "sum"): [[1, 2], [3, 5]], ("mlp_in", "sum_sq"): [[9, 1, 4, 16], [16, 0, 5, 9]]}
    opened = artifacts.statistics(tmp_path, sums, [gate], {"gate.row_sum_sq": [9, 16]})
    norms = {"method": "neuronrank", "variance_multi": 0.0, "magnitude_multi": 1.0, "classes": 0}
    recipe = read_recipe({"attention": {"method": "none"}, "mlp": norms}, "recipes.test")
    assert compute_factors(opened, recipe)["neurons.0"].tolist() == [3, 4]  # squared: 9 and 16
    wanda = {"method": "wanda"}
    factors = compute_factors(opened, read_recipe({"attention": wanda, "mlp": wanda}, "recipes.test"))
    assert factors["gate.column"].tolist() == [5, 1, 3, 5]  # squared: 25, 1, 9, 25
