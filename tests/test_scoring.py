"""Score factors against values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from neuronrank.element_scores import weight_scores
from neuronrank.errors import ArtifactError, DegenerateError, MismatchError, NotFiniteError, ParamsError, UnknownName
from neuronrank.recipes import read_recipe
from neuronrank.scores import compute_factors
from neuronrank.scoring import Element
from tests.artifacts import module, statistics

UP = module("up", "mlp", (2, 4), "mlp_in", "neuron", "row")
DOWN = module("down", "mlp", (3, 2), "mlp_mid", "neuron", "column")
Q = module("q", "attention", (2, 4), "attn_in", "q_out", "row")

# STYLE's example: X = [[-3,0,-3,4],[-4,-3,0,-3]], one document a token: column norms 5, 3, 3, 5
SQUARES = [[9, 0, 9, 16], [16, 9, 0, 9]]
WEIGHT = torch.tensor([[2.0, -3, 2, -1], [4, -8, -9, -5]])


def recipe(mlp, attention=None):
    return read_recipe({"mlp": mlp, "attention": attention or mlp}, "recipes.test")


def scored(factors, name, weight, weight_exp=1.0):
    return weight_scores(
        name, weight, factors, {"weight_exp": weight_exp, "weight_multi": 1.0, "elements": True}, "module"
    )


def test_wanda_is_the_l2_norm_of_the_input_columns(tmp_path):
    opened = statistics(tmp_path, {("mlp_in", "sum_sq"): SQUARES}, [UP])
    factors = compute_factors(opened, recipe({"method": "wanda"}))
    assert factors["up.column"].tolist() == [5, 3, 3, 5]
    assert set(factors) == {"up.column"}
    assert scored(factors, "up", WEIGHT).tolist() == [[10, 9, 6, 5], [20, 24, 27, 25]]


def test_names_that_mean_nothing_are_refused(tmp_path):
    opened = statistics(tmp_path, {("mlp_in", "sum_sq"): SQUARES}, [UP])
    with pytest.raises(
        UnknownName, match=r"layer 0, tap 'mlp_in': no totals of 'sumsq'; there are: sum, sum_abs, sum_sq"
    ):
        opened.tap(0, "mlp_in", None).total("sumsq")
    with pytest.raises(ArtifactError, match=r"tap 'mlp-in' holds nothing; 'sum_sq' is needed"):
        opened.tap(0, "mlp-in", None).documents("sum_sq")
    with pytest.raises(UnknownName, match=r"'inputs' is unknown; known: input, neuron, gate_pre, None"):
        Element(1.0, "inputs")
    with pytest.raises(UnknownName, match=r"'norm' is unknown; known: element, row_norm, neuron_norm"):
        Element(1.0, None, weight="norm")


def test_wanda_of_fewer_samples_uses_the_first_documents(tmp_path):
    opened = statistics(tmp_path, {("mlp_in", "sum_sq"): SQUARES}, [UP])
    factors = compute_factors(opened, recipe({"method": "wanda", "nsamples": 1}))
    assert factors["up.column"].tolist() == [3, 0, 3, 4]


def test_exponents_of_wanda(tmp_path):
    opened = statistics(tmp_path, {("mlp_in", "sum_sq"): SQUARES}, [UP])
    squared = compute_factors(opened, recipe({"method": "wanda", "activation_exp": 2.0}))
    assert squared["up.column"].tolist() == [25, 9, 9, 25]
    none = compute_factors(opened, recipe({"method": "wanda", "activation_exp": 0.0}))
    assert scored(none, "up", WEIGHT).tolist() == WEIGHT.abs().tolist()  # magnitude, exactly
    norms = compute_factors(opened, recipe({"method": "wanda"}))
    assert scored(norms, "up", WEIGHT, weight_exp=0).tolist() == [[5, 3, 3, 5], [5, 3, 3, 5]]
    assert scored(norms, "up", WEIGHT, weight_exp=2)[1].tolist() == [16 * 5, 64 * 3, 81 * 3, 25 * 5]


def test_magnitude_reads_nothing(tmp_path):
    opened = statistics(tmp_path, {("mlp_in", "sum_sq"): SQUARES}, [UP])
    factors = compute_factors(opened, recipe({"method": "magnitude"}))
    assert factors == {}
    assert scored(factors, "up", WEIGHT).tolist() == [[2, 3, 2, 1], [4, 8, 9, 5]]


# Two neurons, three documents of ten tokens. Document means of |a|: neuron 0: 1, 4, 1; neuron 1: 3, 3, 9.
# Pooled and sorted: 1 1 3 3 4 9; the 0.6 quantile is position 3 of 0..5, that is 3 exactly.
# DF: neuron 0 has one document (4), neuron 1 three. TF: 2 and 5. IDF = ln(4 / (DF + 1)) + 1.
NEURON_SUMS = [[10, 30], [40, 30], [10, 90]]
TF = [2.0, 5.0]
IDF = [math.log(4 / 2) + 1, math.log(4 / 4) + 1]


def test_tfidf_lies_on_rows_of_up_and_on_columns_of_down(tmp_path):
    opened = statistics(tmp_path, {("neuron", "sum_abs"): NEURON_SUMS}, [UP, DOWN])
    factors = compute_factors(opened, recipe({"method": "neuronrank_tfidf"}))
    expected = [TF[0] * IDF[0], TF[1] * IDF[1]]
    np.testing.assert_allclose(factors["up.row"], expected, rtol=1e-6)
    np.testing.assert_allclose(factors["down.column"], expected, rtol=1e-6)
    assert set(factors) == {"up.row", "down.column"}
    down = torch.tensor([[1.0, -1], [2, 3], [-4, 0]])
    np.testing.assert_allclose(scored(factors, "down", down), down.abs().numpy() * expected, rtol=1e-6)
    np.testing.assert_allclose(scored(factors, "up", WEIGHT), WEIGHT.abs().numpy() * np.c_[expected], rtol=1e-6)


@pytest.mark.parametrize(("tf_exp", "idf_exp"), [(0.0, 1.0), (1.0, 0.0), (1.5, 2.5), (0.5, -1.0)])
def test_exponents_of_tfidf(tmp_path, tf_exp, idf_exp):
    opened = statistics(tmp_path, {("neuron", "sum_abs"): NEURON_SUMS}, [UP])
    chosen = {"method": "neuronrank_tfidf", "tf_exp": tf_exp, "idf_exp": idf_exp}
    expected = [tf**tf_exp * idf**idf_exp for tf, idf in zip(TF, IDF, strict=True)]
    np.testing.assert_allclose(compute_factors(opened, recipe(chosen))["up.row"], expected, rtol=1e-6)


def test_the_threshold_is_pooled_over_the_tap_and_follows_q_active(tmp_path):
    opened = statistics(tmp_path, {("neuron", "sum_abs"): NEURON_SUMS}, [UP])
    chosen = {"method": "neuronrank_tfidf", "tf_exp": 0.0, "q_active": 0.9}
    # position 4.5 lies between 4 and 9: only the 9 of neuron 1 reaches it, so that DF is 0 and 1
    expected = [math.log(4 / 1) + 1, math.log(4 / 2) + 1]
    np.testing.assert_allclose(compute_factors(opened, recipe(chosen))["up.row"], expected, rtol=1e-6)


def test_stored_counts_equal_counted_ones(tmp_path):
    rng = np.random.default_rng(3)
    sums = rng.lognormal(size=(9, 13)).astype(np.float32)
    opened = statistics(tmp_path, {("neuron", "sum_abs"): sums}, [module("up", "mlp", (13, 4), "x", "neuron", "row")])
    tap = opened.tap(0, "neuron", None)
    means = sums.astype(np.float64) / 10
    for quantile in (0.6, 0.37, 0.95):
        expected = (means >= np.quantile(means, quantile)).sum(axis=0)
        assert tap.document_frequency(quantile).tolist() == expected.tolist()
    np.testing.assert_allclose(tap.total("sum_abs"), sums.astype(np.float64).sum(0), rtol=1e-5)


def test_a_hybrid_takes_each_part_from_its_method(tmp_path):
    sums = {("neuron", "sum_abs"): NEURON_SUMS, ("attn_in", "sum_sq"): [[9, 0, 9, 16], [16, 9, 0, 9], [0, 0, 0, 0]]}
    opened = statistics(tmp_path, sums, [UP, Q])
    factors = compute_factors(opened, recipe({"method": "neuronrank_tfidf"}, {"method": "wanda"}))
    assert set(factors) == {"up.row", "q.column"}
    assert factors["q.column"].tolist() == [5, 3, 3, 5]


def test_the_same_document_frequency_everywhere_is_refused(tmp_path):
    opened = statistics(tmp_path, {("neuron", "sum_abs"): [[1, 5], [5, 1]]}, [UP])
    with pytest.raises(DegenerateError, match=r"layer 0, tap 'neuron': all 2 channels are active in 1 of 2 documents"):
        compute_factors(opened, recipe({"method": "neuronrank_tfidf"}))


def test_a_silent_tap_is_refused(tmp_path):
    opened = statistics(tmp_path, {("mlp_in", "sum_sq"): [[0, 0, 0, 0]]}, [UP])
    with pytest.raises(
        DegenerateError, match=r"up: the wanda factor of layer 0, tap 'mlp_in' is zero in all 4 channels"
    ):
        compute_factors(opened, recipe({"method": "wanda"}))


def test_infinite_factors_are_refused(tmp_path):
    opened = statistics(tmp_path, {("neuron", "sum_abs"): [[0, 30], [0, 20], [0, 90]]}, [UP])
    with pytest.raises(
        NotFiniteError, match=r"neuronrank_tfidf factor of layer 0, tap 'neuron' is NaN or infinite in 1 of 2"
    ):
        compute_factors(opened, recipe({"method": "neuronrank_tfidf", "tf_exp": -1.0}))


def test_scores_that_overflow_are_refused():
    with pytest.raises(NotFiniteError, match=r"up: 8 of 8 scores are NaN or infinite. Lower the exponents"):
        scored({"up.row": np.array([3e38, 3e38], dtype=np.float32)}, "up", WEIGHT * 10)


def test_groups_that_cannot_rank_are_refused():
    part = {"weight_exp": 0.0, "weight_multi": 1.0, "elements": True}
    with pytest.raises(DegenerateError, match="up: the score is the same all along a row"):
        weight_scores("up", WEIGHT, {"up.row": np.array([1, 2], dtype=np.float32)}, part, "row")


def test_a_constant_factor_is_refused(tmp_path):
    opened = statistics(tmp_path, {("mlp_in", "sum_sq"): [[4, 4, 4, 4]]}, [UP])
    with pytest.raises(DegenerateError, match=r"up: the wanda factor of .* is the same in all 4 channels"):
        compute_factors(opened, recipe({"method": "wanda"}))


def test_a_constant_factor_of_one_is_refused_unless_every_exponent_is_zero(tmp_path):
    opened = statistics(tmp_path, {("mlp_in", "sum_sq"): [[1, 1, 1, 1]]}, [UP])
    with pytest.raises(DegenerateError, match="is the same in all 4 channels: it cannot rank"):
        compute_factors(opened, recipe({"method": "wanda"}))
    assert compute_factors(opened, recipe({"method": "wanda", "activation_exp": 0.0})) == {}


def test_equal_scores_are_refused():
    with pytest.raises(DegenerateError, match=r"up: all 8 scores are equal \(1\.0\), they cannot rank"):
        scored({}, "up", WEIGHT, weight_exp=0.0)
    with pytest.raises(DegenerateError, match=r"up: all 8 scores are equal \(0\.0\), they cannot rank"):
        scored({}, "up", WEIGHT * 0)


def test_scores_that_underflow_are_refused_and_true_zeros_are_not():
    with pytest.raises(NotFiniteError, match="up: 1 of 8 scores are too small to tell from zero"):
        scored({}, "up", torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 1e-5]]), weight_exp=30.0)
    weight = torch.tensor([[1.0, 0, 3, 4], [5, 6, 7, 8]])
    column = {"up.column": np.array([1, 1, 0, 1], dtype=np.float32)}
    assert scored(column, "up", weight).tolist() == [[1, 0, 0, 4], [5, 6, 0, 8]]


def test_a_missing_statistic_is_named(tmp_path):
    opened = statistics(tmp_path, {("mlp_in", "sum_abs"): [[1, 2, 3, 4], [4, 3, 2, 1]]}, [UP])
    with pytest.raises(ArtifactError, match=r"tap 'mlp_in' holds df_count, sum_abs, tf_sum; 'wanda_sum_sq' is needed"):
        compute_factors(opened, recipe({"method": "wanda"}))


def test_more_samples_than_were_collected_are_refused(tmp_path):
    opened = statistics(tmp_path, {("mlp_in", "sum_sq"): SQUARES}, [UP])
    with pytest.raises(MismatchError, match="holds 2 documents, nsamples 3 were asked for"):
        compute_factors(opened, recipe({"method": "wanda", "nsamples": 3}))


def test_a_factor_of_another_width_is_refused(tmp_path):
    narrow = module("up", "mlp", (2, 5), "mlp_in", "neuron", "row")
    opened = statistics(tmp_path, {("mlp_in", "sum_sq"): SQUARES}, [narrow])
    with pytest.raises(MismatchError, match="up: its column factor has 4 channels, its weight has 5"):
        compute_factors(opened, recipe({"method": "wanda"}))


def test_all_faults_of_a_recipe_come_in_one_message():
    bad = {"attention": {"method": "wnada"}, "mlp": {"method": "neuronrank_tfidf", "q_active": 1.0, "idf_expo": 2.0}}
    with pytest.raises(ParamsError) as caught:
        read_recipe(bad, "recipes.mine")
    message = str(caught.value)
    assert "recipes.mine.attention.method: scoring: unknown name 'wnada', did you mean 'wanda'?" in message
    assert "recipes.mine.mlp.q_active: found 1.0; input should be less than 1" in message
    assert "recipes.mine.mlp.idf_expo: unknown key, did you mean 'idf_exp'?" in message
