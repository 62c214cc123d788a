"""What is stored of sketches, topics and classes at default settings is what scoring would compute of them."""

import copy
import shutil

import numpy as np
import pytest

from neuronrank import registry, tap_statistics
from neuronrank.derived import CLASSES, OF_CLASSES, OF_SKETCH, OF_TOPICS, TOPICS
from neuronrank.recipes import read_recipe
from neuronrank.scores import compute_factors
from neuronrank.statistics_schema import ARRAYS
from neuronrank.statistics_store import Statistics
from neuronrank.tap_statistics import TapStatistics
from neuronrank.verifying import verify
from tests.forging import reseal
from tests.project import Project, tiny_params
from tests.settings import distinct, filled, settings

METHODS = sorted(set(registry.names("scoring")) - {"none"})
NUMBERS = {"CLASSES": 10, "FEWER_CLASSES": 6, "TOPICS": 8, "FEWER_TOPICS": 3, "SAMPLES": 5}
SPIKY = [{"method": "neuronrank_tfidf", "axis": "input", "spikiness_exp": rho} for rho in (0.5, 1.0)]
TOPIC = [{"method": "neuronrank_tfidf", "mode": "topic", "topics": 8, "idf_exp": gamma} for gamma in (1.0, -0.5)]


@pytest.fixture(scope="module", params=["standard", "full"])
def statistics(request, finished_project, tiny_model, tiny_texts, tmp_path_factory) -> Statistics:
    """The tiny model's, rounded and not."""
    if request.param == "full":
        return Statistics(finished_project.statistics)
    params = copy.deepcopy(tiny_params(tiny_model, tiny_texts))
    params["collect"]["profile"] = request.param
    project = Project(tmp_path_factory.mktemp(request.param), params)
    project.artifacts.mkdir()
    for name in ("model", "text", "tokens"):
        (project.artifacts / name).symlink_to(finished_project.artifacts / name)
    assert project.collect().exit_code == 0
    return Statistics(project.statistics)


def factors(statistics: Statistics, part: dict) -> dict[str, np.ndarray]:
    attention = part if part["method"].startswith(("wanda", "neuronrank_tfidf")) else {"method": "none"}
    return compute_factors(statistics, read_recipe({"attention": attention, "mlp": part}, "recipes.test"))


def needs_full(part: dict) -> bool:
    by_neurons = part["method"] == "neuronrank_tfidf" and part.get("axis", "neuron") == "neuron"
    signs = part["method"] == "neuronrank_tfidf" and part.get("threshold") == "sign"
    return (
        part.get("axis") == "gate_pre" or signs or part.get("theta", 0) < 0 or (by_neurons and "spikiness_exp" in part)
    )


CHECKED = [*distinct(settings(METHODS)), *SPIKY, *TOPIC]


@pytest.mark.parametrize("part", CHECKED, ids=lambda part: " ".join(f"{k}={v}" for k, v in part.items()))
def test_stored_values_give_the_factors_of_computed_ones_to_the_bit(statistics, monkeypatch, part):
    part = filled(part, NUMBERS)
    if statistics.manifest["profile"] == "standard" and needs_full(part):
        pytest.skip("the profile keeps no such statistic")
    stored = factors(statistics, part)
    monkeypatch.setattr(tap_statistics, "stored_as", lambda _compute, _settings: None)
    computed = factors(statistics, part)
    assert stored.keys() == computed.keys()
    for name, values in computed.items():
        np.testing.assert_array_equal(stored[name], values, err_msg=name)


def test_what_was_collected_before_an_array_was_kept_is_computed(statistics, tmp_path):
    earlier = tmp_path / "statistics"
    shutil.copytree(statistics.directory, earlier)
    for tap in statistics.manifest["arrays"]:
        shutil.rmtree(earlier / f"taps.zarr/{tap}/class_pca_qda", ignore_errors=True)

    def without(manifest: dict) -> None:
        for names in manifest["arrays"].values():
            names[:] = [name for name in names if name != "class_pca_qda"]
        for file in [file for file in manifest["files"] if "/class_pca_qda/" in file]:
            del manifest["files"][file]

    reseal(earlier, without)
    part = {"method": "neuronrank_pca_qda", "classes": 10}
    found = factors(Statistics(earlier), part)
    for name, values in factors(statistics, part).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert [finding for finding in verify([earlier]) if finding.is_fault] == []


EXPONENTS = {"weight_exp": 0.7, "tf_exp": 1.3, "idf_exp": 0.6, "variance_exp": 1.7, "variance_multi": 3.0}
OTHERS = {"eps": 2e-10, "element": False, "pooled": True, "magnitude_multi": 0.2, "token_weight": 0.5}


@pytest.mark.parametrize("exponents", [False, True])
@pytest.mark.parametrize(
    "part",
    [
        *({"method": method} for method in METHODS),
        *SPIKY,
        *TOPIC,
        {"method": "neuronrank_old", "threshold": "pooled"},
        {"method": "wanda_idf", "threshold": "relative"},
    ],
    ids=str,
)
def test_default_settings_read_no_sketch_no_topics_and_no_classes(statistics, monkeypatch, part, exponents):
    known = registry.load("scoring", part["method"]).Params.model_fields
    part = {**({"classes": 10} if "classes" in known else {}), **part}
    if exponents:
        baked = ("eps",) if part["method"] in ("neuronrank_qda", "neuronrank_pca_qda") else ()
        part = {**{k: v for k, v in (EXPONENTS | OTHERS).items() if k in known and k not in baked}, **part}

    def refuse(*_args, **_kwargs):
        raise AssertionError("computed")

    for name in ("sketch", "topics", "classes"):
        monkeypatch.setattr(TapStatistics, name, refuse)
    assert factors(statistics, part) or part["method"] == "magnitude"


def test_the_settings_are_the_defaults_of_the_methods():
    named = {"quantile": ("q_active", "spike_quantile"), "factor": ("kappa",), "eps": ("eps",)}
    expected = {"q_active": 0.6, "spike_quantile": 0.9, "kappa": 1.0, "eps": 1e-10}
    expected |= {"topics": TOPICS, "classes": CLASSES, "components": 128}
    for method in METHODS:
        for name, field in registry.load("scoring", method).Params.model_fields.items():
            if name in expected:
                assert field.default == expected[name], (method, name)
    for derived in (*OF_SKETCH, *OF_TOPICS, *OF_CLASSES):
        assert ARRAYS[derived.array].derived
        for name, value in derived.settings.items():
            if name != "quantiles":
                assert value in [expected[other] for other in named.get(name, (name,))], derived.array
