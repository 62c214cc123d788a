"""The trained model: factors and masks against plain hooks in float64, and that IDF does something.

Needs `artifacts/model`, `artifacts/text` and `artifacts/statistics`: `make test-slow` makes them first.
"""

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from neuronrank.checkpoint import open_model
from neuronrank.element_scores import weight_scores
from neuronrank.masks import MaskedModule
from neuronrank.patterns import read_pattern
from neuronrank.recipes import read_recipe
from neuronrank.scores import compute_factors
from neuronrank.statistics_store import Statistics
from neuronrank.windows import read_windows
from tests import naive
from tests.imports import ROOT
from tests.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

LAYERS = [0, 14, 29]
TOLERANCE = 1e-4
PER_BATCH = 3
WANDA = {"method": "wanda"}
TFIDF = {"method": "neuronrank_tfidf"}
PLAIN = {"weight_exp": 1.0, "weight_multi": 1.0, "elements": True}
TAP_OF = {"q": "q_out", "k": "k_out", "v": "v_out", "o": "attn_ctx", "gate": "neuron", "up": "neuron", "down": "neuron"}
INPUT_OF = {
    "q": "attn_in",
    "k": "attn_in",
    "v": "attn_in",
    "o": "attn_ctx",
    "gate": "mlp_in",
    "up": "mlp_in",
    "down": "mlp_mid",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Project:
    """Eight documents of 256 tokens, collected in float32 from the trained model, nothing rounded."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["prepare"] |= {"window_tokens": 256, "calibration_windows": 8}
    params["collect"] |= {"dtype": "float32", "documents_per_batch": PER_BATCH, "profile": "full"}
    project = Project(tmp_path_factory.mktemp("trained"), params)
    project.artifacts.mkdir()
    for name in ("model", "text"):
        (project.artifacts / name).symlink_to(ROOT / "artifacts" / name)
    for step in (project.prepare(), project.collect()):
        assert step.exit_code == 0, step.output
    return project


@pytest.fixture(scope="module")
def reference():
    """The trained model in float64."""
    return AutoModelForCausalLM.from_pretrained(ROOT / "artifacts/model", dtype=torch.float64).eval()


@pytest.fixture(scope="module")
def tokens(small):
    return read_windows(small.artifacts / "tokens/calibration/windows.safetensors").token_ids


@pytest.fixture(scope="module")
def taps(tokens, reference):
    return naive.activations(reference, tokens, LAYERS)


@pytest.fixture(scope="module")
def rounded_taps(tokens):
    """The same from a plain float32 forward, in the micro-batches of `small`: what collect saw."""
    model = AutoModelForCausalLM.from_pretrained(ROOT / "artifacts/model", dtype=torch.float32).eval()
    return naive.activations(model, tokens, LAYERS, PER_BATCH)


@pytest.fixture(scope="module")
def statistics(small) -> Statistics:
    return Statistics(small.statistics)


def recipe(part):
    return read_recipe({"attention": part, "mlp": part}, "recipes.test")


def modules(statistics):
    """Yield every module of the tested layers with its short role, such as `down`."""
    chosen = [module for module in statistics.modules if module.layer in LAYERS]
    assert len(chosen) == 7 * len(LAYERS)
    return [(module, module.name.rpartition(".")[2].removesuffix("_proj")) for module in chosen]


def weight_of(reference, module):
    return np.abs(reference.get_submodule(module.name).weight.detach().numpy())


def assert_masks_agree(found, scores, group):
    """Masks may differ only where scores lie within the tolerance of the group's threshold."""
    expected = naive.mask(scores, 0.5, group)
    rows = scores if group == "row" else scores.reshape(1, -1)
    found, expected = found.reshape(rows.shape), expected.reshape(rows.shape)
    for row, one, other in zip(rows, found, expected, strict=True):
        differs = one != other
        if differs.any():
            threshold = np.sort(row)[row.size // 2]
            assert (np.abs(row[differs] - threshold) <= TOLERANCE * threshold).all()
    return np.count_nonzero(found != expected)


def library_mask(factors, module, reference, group):
    weight = reference.get_submodule(module.name).weight.detach().float()
    pattern = read_pattern({"rule": "unstructured", "sparsity": 0.5, "group": group}, "p")
    masked = MaskedModule(module.name, module.part, group)
    return pattern.rule.keep(
        weight_scores(module.name, weight, factors, PLAIN, masked.default_group), pattern.params, masked
    )


def test_wanda_factors_and_masks(statistics, taps, reference):
    factors = compute_factors(statistics, recipe(WANDA))
    worst, moved = 0.0, 0
    for module, role in modules(statistics):
        expected = naive.wanda_factor(taps[module.layer, INPUT_OF[role]])
        found = factors[f"{module.name}.column"]
        worst = max(worst, float(np.max(np.abs(found - expected) / expected)))
        scores = weight_of(reference, module) * expected[None, :]
        moved += assert_masks_agree(library_mask(factors, module, reference, "row"), scores, "row")
    print(f"wanda: largest relative error {worst:.1e}, {moved} mask entries differ within the tolerance")
    assert worst < TOLERANCE


def test_tfidf_factors_and_masks(statistics, taps, reference):
    factors = compute_factors(statistics, recipe(TFIDF))
    worst, moved, borderline = 0.0, 0, 0
    for module, role in modules(statistics):
        activation = taps[module.layer, TAP_OF[role]]
        expected = naive.tfidf_factor(activation, 1, 1, 0.6)
        axis = "column" if role in ("o", "down") else "row"
        found = factors[f"{module.name}.{axis}"]
        # A document whose mean lies at the threshold within the error may count or not.
        means = naive.document_means(activation)
        threshold = np.quantile(means, 0.6)
        safe = (np.abs(means - threshold) > 1e-6 * threshold).all(axis=0)
        borderline += np.count_nonzero(~safe)
        expected = np.where(safe, expected, found)
        worst = max(worst, float(np.max(np.abs(found - expected) / expected)))
        scores = weight_of(reference, module) * (expected[:, None] if axis == "row" else expected[None, :])
        moved += assert_masks_agree(library_mask(factors, module, reference, "module"), scores, "module")
    print(f"tfidf: largest relative error {worst:.1e}, {borderline} borderline channels, {moved} mask entries differ")
    assert worst < TOLERANCE
    assert borderline <= 2 * len(LAYERS)


@pytest.fixture(scope="module")
def shipped() -> Statistics:
    """The artifact that the pipeline made with params.yaml."""
    return Statistics(ROOT / "artifacts/statistics")


def mlp_masks(statistics, **changes):
    """Masks of all MLP modules of the tested layers, one after the other."""
    factors = compute_factors(statistics, recipe({**TFIDF, **changes}))
    model = open_model(ROOT / "artifacts/model")
    from neuronrank.checkpoint import Checkpoint

    checkpoint = Checkpoint(model.weights_directory)
    pattern = read_pattern({"rule": "unstructured", "sparsity": 0.5}, "p")
    masks = []
    for module, _ in modules(statistics):
        if module.part == "mlp":
            masked = MaskedModule(module.name, module.part, "module")
            weight = checkpoint.tensor(f"{module.name}.weight")
            masks.append(
                pattern.rule.keep(
                    weight_scores(module.name, weight, factors, PLAIN, masked.default_group), pattern.params, masked
                ).ravel()
            )
    return np.concatenate(masks)


def test_idf_varies_over_the_channels_of_every_neuron_tap(shipped):
    for layer in range(shipped.manifest["n_layers"]):
        for tap in ("neuron", "q_out", "k_out", "v_out", "attn_ctx"):
            counts = shipped.tap(layer, tap, None).document_frequency(0.6)
            assert len(np.unique(counts)) >= 10, f"layer {layer}, {tap}: {np.unique(counts)}"


@pytest.mark.parametrize("changes", [{"idf_exp": 0.0}, {"idf_exp": 2.0}, {"q_active": 0.9}, {"tf_exp": 0.5}])
def test_every_knob_changes_the_mask(shipped, changes):
    moved = np.mean(mlp_masks(shipped) != mlp_masks(shipped, **changes))
    print(f"{changes}: {moved:.2%} of the mask changes")
    assert moved > 0.005
