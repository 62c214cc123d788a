"""Every method at two settings of each parameter: against naive definitions, and without any forward pass."""

import inspect

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoModelForCausalLM, PreTrainedModel

from neuronrank import registry
from neuronrank.checkpoint import Checkpoint, open_model
from neuronrank.element_scores import weight_scores
from neuronrank.patterns import read_pattern
from neuronrank.pruning import iter_masks
from neuronrank.recipes import read_recipe
from neuronrank.scores import compute_factors, score_header
from neuronrank.statistics_store import Statistics
from tests import naive, naive_methods
from tests.settings import KNOBS, WITHOUT_EFFECT, distinct, filled, settings

METHODS = sorted(set(registry.names("scoring")) - {"none"})
STRUCTURED_ONLY = {"neuronrank", "neuronrank_variance"}
NUMBERS = {"CLASSES": 10, "FEWER_CLASSES": 6, "TOPICS": 8, "FEWER_TOPICS": 3, "SAMPLES": 5}
PATTERN = {"rule": "unstructured", "sparsity": 0.5, "group": "module"}
STRUCTURED = {"rule": "structured", "sparsity": 0.3}


def recipe(part: dict):
    scored = "attention" in registry.load("scoring", part["method"]).PARTS and part.get("magnitude") != "neuron_norm"
    attention = part if scored else {"method": "none"}
    return read_recipe({"attention": attention, "mlp": part}, "recipes.test")


@pytest.fixture(scope="module")
def statistics(finished_project) -> Statistics:
    return Statistics(finished_project.statistics)


@pytest.fixture(scope="module")
def layers(finished_project, statistics, tiny_model) -> list[naive_methods.Layer]:
    """The tiny model's layers from plain hooks in float64."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()
    token_ids = statistics.token_ids()
    taps = naive.activations(model, token_ids, [0, 1])
    store = zarr.open_group(finished_project.statistics / "taps.zarr", mode="r")
    return [
        naive_methods.Layer(
            taps={tap: values for (layer, tap), values in taps.items() if layer == index},
            weights={
                name.split(".")[1].removesuffix("_proj"): parameter.detach().numpy()
                for name, parameter in model.model.layers[index].named_parameters()
                if "_proj" in name
            },
            token_ids=token_ids,
            labels=store["topics/labels"][index],
            centroids=store["topics/centroids"][index],
        )
        for index in (0, 1)
    ]


def test_every_parameter_of_every_method_is_turned():
    assert set(KNOBS) == set(registry.names("scoring"))
    for method, knobs in KNOBS.items():
        fields = set(registry.load("scoring", method).Params.model_fields) - {"method"}
        assert fields == set(knobs), method


CHECKED = distinct(settings(METHODS))


@pytest.mark.parametrize("part", CHECKED, ids=lambda part: " ".join(f"{k}={v}" for k, v in part.items()))
def test_scores_agree_with_their_definition(statistics, layers, finished_project, part):
    part = filled(part, NUMBERS)
    chosen = recipe(part)
    factors, header = compute_factors(statistics, chosen), score_header(statistics.manifest, "test", chosen)
    checkpoint = Checkpoint(open_model(finished_project.artifacts / "model").weights_directory)
    # The sketch gives the mean of a channel's largest |a| within 1 %, of so few tokens within 3 %.
    by_default = 1.0 if part["method"] in ("wanda_spiky", "wanda_select") else 0.0
    tolerance = 3e-2 * part.get("spikiness_exp", by_default) or 1e-4
    checked = 0
    for module in statistics.modules:
        described = header["parts"].get(module.part)
        role = module.name.rpartition(".")[2].removesuffix("_proj")
        if described is None or not described["elements"]:
            continue
        weight = checkpoint.tensor(f"{module.name}.weight")
        found = weight_scores(module.name, weight, factors, described, "module")
        expected = naive_methods.element_scores(layers[module.layer], role, part)
        # A neuron that hardly loads on the components has a score of rounding errors.
        smallest = 1e-4 * expected.max() if part["method"] == "neuronrank_pca_qda" else 1e-30
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=smallest)
        assert_masks_agree(found, expected, tolerance)
        checked += 1
    for layer in range(2):
        if f"neurons.{layer}" in factors:
            expected = naive_methods.neuron_scores(layers[layer], part)
            smallest = 1e-4 * expected.max() if part["method"] == "neuronrank_pca_qda" else 0
            np.testing.assert_allclose(factors[f"neurons.{layer}"], expected, rtol=1e-4, atol=smallest)
            checked += 1
    assert checked >= (2 if part["method"] in STRUCTURED_ONLY else 8)


def assert_masks_agree(found, expected, tolerance):
    """Half of the lowest removed: the two may differ only within the tolerance of the threshold."""
    one, other = naive.mask(found.astype(np.float64), 0.5, "module"), naive.mask(expected, 0.5, "module")
    threshold = np.sort(expected.ravel())[expected.size // 2]
    assert (np.abs(expected[one != other] - threshold) <= 3 * tolerance * threshold).all()


@pytest.fixture
def no_forward(monkeypatch):
    """Any model forward raises, and so does building a model."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a model was run")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr(PreTrainedModel, "__init__", refuse)
    monkeypatch.setattr(torch.nn.functional, "linear", refuse)


def bits(statistics, model, part, pattern) -> np.ndarray:
    chosen = recipe(part)
    factors, header = compute_factors(statistics, chosen), score_header(statistics.manifest, "test", chosen)
    masks = iter_masks(model, factors, header, read_pattern(pattern, "patterns.test"))
    return np.concatenate([mask.keep.ravel() for mask in masks if mask.entry["part"] == "mlp"])


PAIRS = [
    (one, other)
    for one, other in settings(METHODS)
    for changed in [{key: value for key, value in other.items() if one.get(key) != value}]
    if not any((other["method"], *item) in WITHOUT_EFFECT for item in changed.items())
    and not any((other["method"], key) in WITHOUT_EFFECT for key in changed)
]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=[" ".join(f"{k}={v}" for k, v in o.items()) for _, o in PAIRS])
def test_every_setting_scores_and_prunes_without_a_forward_and_changes_the_mask(
    statistics, finished_project, no_forward, one, other
):
    model = open_model(finished_project.artifacts / "model")
    pattern = STRUCTURED if one["method"] in STRUCTURED_ONLY else PATTERN
    masks = [bits(statistics, model, filled(part, NUMBERS), pattern) for part in (one, other)]
    assert masks[0].size == masks[1].size
    assert (masks[0] != masks[1]).any()


def test_what_cannot_change_a_mask_says_so():
    for method, *_ in WITHOUT_EFFECT:
        documented = inspect.getdoc(registry.load("scoring", method))
        assert "same mask" in documented or "theta is 0" in documented, method
