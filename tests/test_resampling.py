"""Scoring again instead of collecting again: fewer documents, classes or topics; and the three storage profiles.

Artifacts are written and read by the stages; each is compared with one that was collected with fewer from the start.
"""

import copy

import numpy as np
import pytest
import torch
import zarr
from scipy.cluster.hierarchy import cut_tree, linkage

from neuronrank.accumulation import Accumulation
from neuronrank.errors import ArtifactError, MismatchError, ParamsError
from neuronrank.profiles import PROFILES
from neuronrank.recipes import read_recipe
from neuronrank.scores import compute_factors
from neuronrank.statistics import Context, Tapped
from neuronrank.statistics_store import Statistics
from neuronrank.token_classes import ClassMoments, fewer_classes
from tests.project import Project, tiny_params

HALF_ULP_OF_16_BITS = 2.0**-17


@pytest.fixture(scope="module")
def collected(finished_project, tiny_model, tiny_texts, tmp_path_factory):
    """Collect the tiny model's 12 documents with other parameters; each combination once."""
    known: dict[str, Statistics] = {}

    def run(documents: int = 12, micro_topics: int = 8, profile: str = "full", classes: int = 10) -> Statistics:
        key = repr((documents, micro_topics, profile, classes))
        if key not in known:
            params = copy.deepcopy(tiny_params(tiny_model, tiny_texts))
            params["prepare"]["calibration_windows"] = documents
            params["collect"] |= {"profile": profile, "classes": classes}
            params["collect"]["topics"]["micro_topics"] = micro_topics
            project = Project(tmp_path_factory.mktemp("collected"), params)
            project.artifacts.mkdir()
            for name in ("model", "text"):
                (project.artifacts / name).symlink_to(finished_project.artifacts / name)
            for step in (project.prepare(), project.collect()):
                assert step.exit_code == 0, step.output
            known[key] = Statistics(project.statistics)
        return known[key]

    return run


def factors(statistics: Statistics, **part) -> dict[str, np.ndarray]:
    """The factors of one method, of the MLP alone where it does not score attention."""
    attention = part if part["method"].startswith(("wanda", "neuronrank_tfidf")) else {"method": "none"}
    return compute_factors(statistics, read_recipe({"attention": attention, "mlp": part}, "recipes.test"))


def assert_equal(one: dict, other: dict, expected: int):
    assert one.keys() == other.keys()
    assert len(one) == expected
    for name, values in one.items():
        assert np.array_equal(values, other[name]), name


# Fewer documents.


@pytest.mark.parametrize("profile", ["standard", "full"])
def test_five_of_twelve_documents_have_the_sums_of_a_collection_of_five(collected, profile):
    twelve, five = collected(profile=profile), collected(documents=5, profile=profile)
    assert np.array_equal(twelve.token_ids()[:5], five.token_ids())
    checked = 0
    for layer in (0, 1):
        for tap, kept in PROFILES[profile].documents.items():
            for statistic in kept:
                found = twelve.tap(layer, tap, 5).documents(statistic)
                assert found.shape[0] == 5
                assert np.array_equal(found, five.tap(layer, tap, None).documents(statistic)), (tap, statistic)
                checked += 1
    assert checked == 2 * {"standard": 13, "full": 36}[profile]


NSAMPLES = [
    ({"method": "wanda"}, 14),
    ({"method": "wanda", "activation_exp": 0.5}, 14),
    ({"method": "neuronrank_tfidf"}, 14),
    ({"method": "neuronrank_tfidf", "q_active": 0.85, "idf_exp": 2.0}, 14),
    ({"method": "neuronrank_tfidf", "threshold": "relative", "axis": "input"}, 14),
]


@pytest.mark.parametrize("profile", ["standard", "full"])
@pytest.mark.parametrize(("part", "n_factors"), NSAMPLES)
def test_nsamples_gives_the_factors_of_a_collection_of_so_many(collected, profile, part, n_factors):
    twelve, five = collected(profile=profile), collected(documents=5, profile=profile)
    found = factors(twelve, **part, nsamples=5)
    assert_equal(found, factors(five, **part), n_factors)
    for name, values in factors(twelve, **part).items():
        assert not np.array_equal(values, found[name]), name
    assert_equal(factors(twelve, **part, nsamples=12), factors(twelve, **part), n_factors)


def test_more_documents_than_stored_are_refused(collected):
    expected = r"holds 12 documents, nsamples 13 were asked for\. Raise prepare\.calibration_windows and run"
    with pytest.raises(MismatchError, match=expected):
        factors(collected(), method="wanda", nsamples=13)


@pytest.mark.parametrize(
    ("part", "array"),
    [
        ({"mode": "topic", "topics": 3}, "neuron/topic_tf"),
        ({"spikiness_exp": 1.0}, "neuron/top_tenth_mean"),
    ],
)
def test_what_has_no_document_axis_refuses_nsamples(collected, part, array):
    recipe = {"attention": {"method": "none"}, "mlp": {"method": "neuronrank_tfidf", "nsamples": 5, **part}}
    expected = rf"{array} counts all 12 documents, nsamples 5 cannot be taken from it.*calibration_windows: 5"
    with pytest.raises(MismatchError, match=expected):
        compute_factors(collected(), read_recipe(recipe, "recipes.test"))


@pytest.mark.parametrize("method", ["wanda_idf", "wanda_select", "neuronrank_fisher", "neuronrank_old", "neuronrank"])
def test_a_method_without_a_document_axis_has_no_nsamples(method):
    with pytest.raises(ParamsError, match=r"recipes\.test\.mlp\.nsamples: unknown key"):
        read_recipe({"attention": {"method": "none"}, "mlp": {"method": method, "nsamples": 5}}, "recipes.test")


# Fewer classes.


def test_six_of_ten_classes_have_the_moments_of_a_collection_with_six(collected):
    ten, six = collected(), collected(classes=6)
    for layer in (0, 1):
        fewer, fresh = ten.tap(layer, "neuron", None).classes(6), six.tap(layer, "neuron", None).classes(6)
        whole = ten.tap(layer, "neuron", None).classes(10)
        assert fewer.count.tolist() == fresh.count.tolist() == [*whole.count[:6], whole.count[6:].sum()]
        assert whole.count[:-1].tolist() == sorted(whole.count[:-1], reverse=True)
        assert fewer.count.sum() == 12 * 16
        assert np.array_equal(fewer.sum[:6], fresh.sum[:6])
        assert np.array_equal(fewer.centred_sq[:6], fresh.centred_sq[:6])
        # The others: five float32 rows added here, rounded to float32 once there.
        scale = ten.tap(layer, "neuron", None).total("sum_abs")
        assert np.max(np.abs(fewer.sum[6] - fresh.sum[6]) / scale) < 4e-7  # float32 sums of float32 differences
        np.testing.assert_allclose(fewer.centred_sq[6], fresh.centred_sq[6], rtol=5e-6)


CLASS_METHODS = [
    ("neuronrank_fisher", 8),
    ("neuronrank_between", 8),
    ("neuronrank_mahalanobis", 8),
    ("neuronrank_qda", 8),
    ("neuronrank_pca_qda", 8),
    ("neuronrank", 2),
    ("neuronrank_variance", 2),
    ("neuronrank_unstructured", 6),
]


@pytest.mark.parametrize(("method", "n_factors"), CLASS_METHODS)
def test_fewer_classes_give_the_factors_of_a_collection_with_fewer(collected, method, n_factors):
    found = factors(collected(), method=method, classes=6)
    fresh = factors(collected(classes=6), method=method, classes=6)
    assert found.keys() == fresh.keys()
    assert len(found) == n_factors
    for name, values in fresh.items():
        smallest = 1e-5 * values.max() if method == "neuronrank_pca_qda" else 0
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=smallest, err_msg=name)
    ten = factors(collected(), method=method, classes=10)
    for name, values in found.items():
        assert np.max(np.abs(values / ten[name] - 1)) > 1e-2, name


@pytest.mark.parametrize("method", ["neuronrank_fisher", "neuronrank_variance"])
def test_more_classes_than_stored_are_refused(collected, method):
    with pytest.raises(MismatchError, match=r"holds 10 token classes, 11 were asked for\. Raise collect\.classes"):
        factors(collected(), method=method, classes=11)


def test_classes_that_were_left_out_are_refused(collected):
    with pytest.raises(
        ArtifactError, match=r"neuron/class_between is needed; it was collected with collect\.classes: 0"
    ):
        factors(collected(classes=0), method="neuronrank_fisher", classes=1)


# Fewer topics.


@pytest.mark.parametrize("k", [1, 3, 5, 8])
def test_topics_merge_to_any_smaller_number(collected, k):
    statistics = collected()
    store = zarr.open_group(statistics.directory / "taps.zarr", mode="r")
    for layer in (0, 1):
        tree = linkage(store["topics/centroids"][layer].astype(np.float64), "ward")
        of_micro = cut_tree(tree, n_clusters=k)[:, 0]
        for statistic, reduce in (("sum", np.sum), ("sum_abs", np.sum), ("max_abs", np.max)):
            micro = store[f"neuron/topic_{statistic}"][layer].astype(np.float64)
            found = statistics.tap(layer, "neuron", None).topics(k, statistic)
            groups = [of_micro == topic for topic in dict.fromkeys(of_micro.tolist())]  # by lowest micro-topic
            np.testing.assert_allclose(found.sums, [reduce(micro[group], axis=0) for group in groups], rtol=1e-12)
            assert found.count.tolist() == [store["topics/count"][layer][group].sum() for group in groups]
        whole = statistics.tap(layer, "neuron", None)
        np.testing.assert_allclose(whole.topics(k, "sum_abs").sums.sum(axis=0), whole.total("sum_abs"), rtol=1e-6)


def test_one_topic_has_the_frequency_of_all_tokens(collected):
    found = factors(collected(), method="neuronrank_tfidf", mode="topic", topics=1, idf_exp=0.0)
    for name, values in factors(collected(), method="neuronrank_tfidf", idf_exp=0.0).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


def test_more_topics_than_stored_are_refused(collected):
    with pytest.raises(MismatchError, match=r"holds 8 micro-topics, 9 topics were asked for\. Raise collect\.topics"):
        factors(collected(), method="neuronrank_tfidf", mode="topic", topics=9)


def test_topics_that_were_left_out_are_refused(collected):
    expected = r"topic_tf is needed; it was collected with collect\.topics\.micro_topics: 0"
    with pytest.raises(ArtifactError, match=expected):
        factors(collected(micro_topics=0), method="neuronrank_tfidf", mode="topic", topics=1)


# Profiles.

LEAN = [
    {"method": "wanda"},
    {"method": "neuronrank_tfidf"},
    {"method": "neuronrank_tfidf", "tf_exp": 1.5, "idf_exp": 2.0},
    {"method": "neuronrank_tfidf", "axis": "input", "idf_exp": 0.0},
    {"method": "neuronrank_old"},
    {"method": "neuronrank_old", "threshold": "sign", "magnitude": "row_norm"},
]
STANDARD = [
    {"method": "neuronrank_tfidf", "q_active": 0.8},
    {"method": "neuronrank_tfidf", "nsamples": 5},
    {"method": "neuronrank_tfidf", "mode": "topic", "topics": 5},
    {"method": "wanda_select"},
    {"method": "wanda_select", "threshold": "relative"},
    {"method": "neuronrank_old", "threshold": "pooled"},
    {"method": "neuronrank_fisher", "classes": 10},
    {"method": "neuronrank_qda", "classes": 10, "eps": 1e-3},
    {"method": "neuronrank", "classes": 10, "token_weight": 1.0},
]


@pytest.mark.parametrize("part", LEAN)
def test_lean_answers_exactly_as_standard(collected, part):
    lean, standard = (factors(collected(profile=profile), **part) for profile in ("lean", "standard"))
    assert_equal(lean, standard, len(standard))
    assert len(lean) >= 6


@pytest.mark.parametrize("part", LEAN + STANDARD)
def test_standard_answers_as_full_but_for_its_rounding(collected, part):
    """Document sums to 16 bits, class sums to 11, topics to 9, classes' squared deviations and octaves to 8.

    A topic's mean that near to the threshold may count on one side only.
    """
    standard, full = (factors(collected(profile=profile), **part) for profile in ("standard", "full"))
    assert standard.keys() == full.keys()
    kept_in_documents = "classes" not in part and part.get("mode") != "topic" and not part["method"].endswith("select")
    coarse = "classes" in part or part["method"].endswith("select")
    tolerance = 3 * HALF_ULP_OF_16_BITS if kept_in_documents else 1e-2 if coarse else 1e-3
    at_the_threshold = 0.07 if part.get("mode") == "topic" else 0.0
    for name, values in full.items():
        off = ~np.isclose(standard[name], values, rtol=tolerance, atol=0)
        assert off.mean() <= at_the_threshold, (name, standard[name][off], values[off])


def test_only_full_is_not_rounded(collected):
    for profile, bits in (("standard", 16), ("full", 23)):
        kept = collected(profile=profile).tap(1, "neuron", None).documents("sum_abs").view(np.uint32)
        assert (kept & np.uint32((1 << (23 - bits)) - 1) == 0).all()
        assert (kept & np.uint32(1 << (23 - bits)) != 0).any()


SET_STANDARD, SET_FULL = r"Set collect\.profile: standard", r"Set collect\.profile: full"
REFUSED = [
    ("lean", {"method": "wanda", "nsamples": 5}, "attn_in/sum_sq", SET_STANDARD),
    ("lean", {"method": "neuronrank_tfidf", "nsamples": 5}, "q_out/sum_abs", SET_STANDARD),
    ("lean", {"method": "neuronrank_tfidf", "q_active": 0.7}, "q_out/sum_abs", SET_STANDARD),
    ("lean", {"method": "neuronrank_tfidf", "threshold": "relative"}, "q_out/sum_abs", SET_STANDARD),
    ("lean", {"method": "wanda_spiky"}, "attn_in/top_tenth_mean", SET_STANDARD),
    ("lean", {"method": "wanda_idf"}, "attn_in/n_above_pooled", SET_STANDARD),
    ("lean", {"method": "neuronrank_old", "threshold": "pooled"}, "neuron/n_above_pooled", SET_STANDARD),
    ("lean", {"method": "wanda_idf", "q_active": 0.5}, "attn_in/sketch_count", SET_STANDARD),
    ("lean", {"method": "neuronrank_old", "theta": 0.1}, "neuron/total_min", SET_STANDARD),
    ("lean", {"method": "neuronrank_tfidf", "mode": "topic", "topics": 3}, "q_out/topic_tf", SET_STANDARD),
    ("lean", {"method": "neuronrank_fisher", "classes": 5}, "neuron/class_between", SET_STANDARD),
    ("lean", {"method": "neuronrank", "classes": 0}, "neuron/sum", SET_STANDARD),
    ("lean", {"method": "neuronrank_tfidf", "spikiness_exp": 1.0}, "q_out/top_tenth_mean", SET_FULL),
    ("standard", {"method": "neuronrank_tfidf", "spikiness_exp": 1.0}, "q_out/top_tenth_mean", SET_FULL),
    ("standard", {"method": "neuronrank_tfidf", "threshold": "sign"}, "q_out/sum", SET_FULL),
    (
        "standard",
        {"method": "neuronrank_tfidf", "threshold": "sign", "mode": "topic", "topics": 3},
        "q_out/topic_sum",
        SET_FULL,
    ),
    ("standard", {"method": "neuronrank_old", "theta": -0.01}, "neuron/sketch_negative_count", SET_FULL),
]


@pytest.mark.parametrize(("profile", "part", "array", "advice"), REFUSED)
def test_what_a_profile_lacks_is_refused_with_the_profile_that_has_it(collected, profile, part, array, advice):
    expected = rf"profile '{profile}' keeps no {array}, which is needed\. {advice}"
    with pytest.raises(ArtifactError, match=expected):
        factors(collected(profile=profile), **part)


@pytest.mark.parametrize("profile", ["lean", "standard"])
@pytest.mark.parametrize("part", [{}, {"idf_exp": 0.0}, {"mode": "topic", "topics": 3}])
def test_gate_pre_needs_full(collected, profile, part):
    recipe = {
        "attention": {"method": "none"},
        "mlp": {"method": "neuronrank_tfidf", "axis": "gate_pre", **part},
    }
    with pytest.raises(ArtifactError, match=rf"profile '{profile}' keeps no gate_pre/\w+, .* {SET_FULL}"):
        compute_factors(collected(profile=profile), read_recipe(recipe, "recipes.test"))


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("neuronrank_tfidf", "q_active"),
        ("neuronrank_tfidf", "spike_quantile"),
        ("wanda_select", "q_active"),
        ("wanda_select", "spike_quantile"),
        ("neuronrank_old", "q_active"),
    ],
)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.2, 1.5, float("nan")])
def test_a_quantile_outside_0_and_1_is_refused(method, key, value):
    with pytest.raises(ParamsError, match=rf"recipes\.test\.mlp\.{key}: found {value}"):
        read_recipe({"attention": {"method": "none"}, "mlp": {"method": method, key: value}}, "recipes.test")


@pytest.mark.parametrize(("key", "value"), [("nsamples", 0), ("nsamples", -3), ("topics", 0)])
def test_a_number_below_one_is_refused(key, value):
    part = {"method": "neuronrank_tfidf", key: value}
    with pytest.raises(ParamsError, match=rf"recipes\.test\.mlp\.{key}: found {value}"):
        read_recipe({"attention": {"method": "none"}, "mlp": part}, "recipes.test")


def test_the_variance_of_few_like_tokens_survives_the_rounding(collected):
    """Two tokens a little apart: from rounded sums of a and a^2 nothing of their variance would be left."""
    statistics = collected(profile="standard")
    for layer in (0, 1):
        unrounded = collected(profile="full").tap(layer, "neuron", None).classes(10).variance
        np.testing.assert_allclose(
            statistics.tap(layer, "neuron", None).classes(10).variance, unrounded, rtol=2.1e-3, atol=1e-12
        )
    tokens = torch.tensor([[0, 0, 1, 1, 1]])
    values = torch.tensor([[[1000.0], [1000.5], [3.0], [5.0], [10.0]]])
    accumulation = Accumulation(Context(1, PROFILES["full"], tokens, 1, tokens, 0, gram=False))
    accumulation.add("neuron", Tapped.of(values, slice(0, 1), 5))
    found = accumulation.result()
    assert found["neuron", "class_sum"].tolist() == [[2000.5], [18.0]]
    assert found["neuron", "class_centred_sq"].tolist() == [[0.125], [26.0]]  # 9 + 1 + 16


def test_others_take_in_the_deviations_of_the_classes_that_join_them():
    # values 1, 3 | 10, 16 | 5: means 2, 13, 5 and squared deviations 2, 18, 0
    count, sums = np.array([2.0, 2.0, 1.0]), np.array([[4.0], [26.0], [5.0]])
    merged = fewer_classes(ClassMoments(count, sums, np.array([[2.0], [18.0], [0.0]])), 1)
    assert (merged.count.tolist(), merged.sum.tolist()) == ([2, 3], [[4], [31]])
    values = np.array([10.0, 16.0, 5.0])
    np.testing.assert_allclose(merged.centred_sq, [[2], [((values - values.mean()) ** 2).sum()]])
