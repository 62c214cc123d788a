"""Every method at two settings of each parameter, from the artifact that the pipeline made, without any model.

Needs `artifacts/model` and `artifacts/statistics`: `make test-slow` makes them first. Only the MLP of the last layer is
scored and pruned, so that all settings take minutes; profile `standard` holds nearly all that they read.
"""

import numpy as np
import pytest

from neuronrank.checkpoint import open_model
from neuronrank.errors import ArtifactError
from neuronrank.patterns import read_pattern
from neuronrank.pruning import iter_masks
from neuronrank.recipes import read_recipe
from neuronrank.scores import compute_factors, score_header
from neuronrank.statistics_store import Statistics
from tests.imports import ROOT
from tests.settings import filled
from tests.test_methods import PAIRS, STRUCTURED_ONLY, no_forward  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

NUMBERS = {"CLASSES": 512, "FEWER_CLASSES": 64, "TOPICS": 64, "FEWER_TOPICS": 16, "SAMPLES": 16}
PATTERN = {"rule": "unstructured", "sparsity": 0.5, "group": "module", "attention": False}
STRUCTURED = {"rule": "structured", "sparsity": 0.3}
STORED = [pair for pair in PAIRS if pair[1].get("axis") != "gate_pre" and pair[1].get("theta", 0.0) >= 0]
"""All that profile `standard` holds the statistics of; `full` is tested on the tiny model."""


@pytest.fixture(scope="module")
def shipped() -> Statistics:
    """The artifact that the pipeline made with params.yaml, its last layer only."""
    statistics = Statistics(ROOT / "artifacts/statistics")
    assert statistics.manifest["profile"] == "standard"
    last = statistics.manifest["n_layers"] - 1
    statistics.modules = [module for module in statistics.modules if module.layer == last]
    statistics.manifest["modules"] = [entry for entry in statistics.manifest["modules"] if entry["layer"] == last]
    return statistics


@pytest.fixture(scope="module")
def model():
    return open_model(ROOT / "artifacts/model")


def bits(statistics, model, part) -> np.ndarray:
    recipe = read_recipe({"attention": {"method": "none"}, "mlp": part}, "recipes.test")
    factors, header = compute_factors(statistics, recipe), score_header(statistics.manifest, "test", recipe)
    pattern = read_pattern(STRUCTURED if part["method"] in STRUCTURED_ONLY else PATTERN, "patterns.test")
    return np.concatenate([mask.keep.ravel() for mask in iter_masks(model, factors, header, pattern)])


@pytest.mark.parametrize(("one", "other"), STORED, ids=[" ".join(f"{k}={v}" for k, v in o.items()) for _, o in STORED])
def test_every_setting_changes_the_mask_without_a_forward(shipped, model, no_forward, one, other):  # noqa: F811
    masks = [bits(shipped, model, filled(part, NUMBERS)) for part in (one, other)]
    moved = np.mean(masks[0] != masks[1])
    print(f"{moved:.2%} of the mask changes")
    assert moved > 0


@pytest.mark.parametrize(
    ("part", "needed"),
    [
        ({"method": "neuronrank_tfidf", "axis": "gate_pre"}, "gate_pre/tf_sum"),
        ({"method": "neuronrank_tfidf", "mode": "topic", "threshold": "sign"}, "neuron/topic_sum"),
        ({"method": "neuronrank_tfidf", "mode": "topic", "axis": "input"}, "mlp_in/topic_tf"),
        ({"method": "neuronrank_old", "theta": 0.1}, "neuron/sketch_negative_count"),
    ],
)
def test_what_standard_does_not_hold_is_named_with_the_profile_that_does(shipped, model, part, needed):
    with pytest.raises(ArtifactError, match=rf"{needed}.*Set collect.profile: full"):
        bits(shipped, model, part)
