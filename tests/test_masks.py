"""Masks against hand-computed examples and a naive stable sort."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronrank.errors import DegenerateError, MismatchError, ParamsError
from neuronrank.mask_store import pack
from neuronrank.masks import MaskedModule, lowest, n_removed
from neuronrank.masks._radix_select import find_cut
from neuronrank.patterns import read_pattern

MODULE = MaskedModule("model.layers.0.mlp.up_proj", "mlp", "row")

# |W| * ||X||_2 of STYLE's example: W = [[2,-3,2,-1],[4,-8,-9,-5]], column norms 5, 3, 3, 5
WANDA_SCORES = np.array([[10, 9, 6, 5], [20, 24, 27, 25]], dtype=np.float32)


def keep(scores, module=MODULE, **pattern):
    chosen = read_pattern(pattern, "patterns.test")
    return chosen.rule.keep(np.asarray(scores, dtype=np.float32), chosen.params, module).astype(int).tolist()


def test_row_groups_keep_half_of_each_row():
    assert keep(WANDA_SCORES, rule="unstructured", sparsity=0.5) == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_module_group_ranks_the_whole_matrix():
    assert keep(WANDA_SCORES, rule="unstructured", sparsity=0.5, group="module") == [[0, 0, 0, 0], [1, 1, 1, 1]]


def test_the_methods_default_group_holds_when_the_pattern_names_none():
    by_module = MaskedModule("m", "mlp", "module")
    assert keep(WANDA_SCORES, by_module, rule="unstructured", sparsity=0.5) == [[0, 0, 0, 0], [1, 1, 1, 1]]


def test_each_part_has_its_own_sparsity():
    scores = [[1, 2, 3, 4]]
    both = {"rule": "unstructured", "sparsity": {"attention": 0.25, "mlp": 0.75}}
    assert keep(scores, MaskedModule("m", "attention", "row"), **both) == [[0, 1, 1, 1]]
    assert keep(scores, MaskedModule("m", "mlp", "row"), **both) == [[0, 0, 0, 1]]


def test_one_of_four_keeps_one():
    # A tool that reads 1:4 as "remove one" would keep three.
    scores = [[3, 1, 2, 0, 5, 8, 6, 7]]
    assert keep(scores, rule="n_of_m", keep_n=1, group_m=4) == [[1, 0, 0, 0, 0, 1, 0, 0]]


def test_groups_of_m_run_along_the_input_columns():
    scores = [[1, 2], [4, 3]]
    assert keep(scores, rule="n_of_m", keep_n=1, group_m=2) == [[0, 1], [1, 0]]  # along rows: [[0,0],[1,1]]


def test_the_lowest_index_goes_first_among_equal_scores():
    assert keep([[7, 7, 7, 7, 9]], rule="unstructured", sparsity=0.4) == [[0, 0, 1, 1, 1]]
    assert keep([[7, 7], [7, 7]], rule="unstructured", sparsity=0.5, group="module") == [[0, 0], [1, 1]]
    assert keep([[5, 5, 5, 5]], rule="n_of_m", keep_n=2, group_m=4) == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("sparsity", "size", "expected"),
    [(0.29, 100, 29), (0.5, 7, 3), (0.7, 10, 7), (0.0, 9, 0), (1 / 3, 3, 1), (0.29, 10**8, 29 * 10**6)],
)
def test_counts_are_exact_where_floats_are_not(sparsity, size, expected):
    assert n_removed(sparsity, size) == expected  # int(0.29 * 100) is 28


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 5).flatmap(
        lambda rows: st.integers(1, 12).flatmap(
            lambda columns: st.tuples(
                st.lists(
                    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 1e-30, 3e38]), min_size=columns, max_size=columns),
                    min_size=rows,
                    max_size=rows,
                ),
                st.integers(0, columns),
            )
        )
    )
)
def test_lowest_is_the_head_of_a_stable_sort(case):
    scores, k = case
    expected = [[False] * len(row) for row in scores]
    for marks, row in zip(expected, scores, strict=True):
        for index in sorted(range(len(row)), key=row.__getitem__)[:k]:  # Python's sort is stable
            marks[index] = True
    assert lowest(np.array(scores, dtype=np.float32), k).tolist() == expected


def head_of_stable_sort(scores: np.ndarray, k: int) -> np.ndarray:
    marks = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(marks, np.argsort(scores, axis=1, kind="stable")[:, :k], True, axis=1)
    return marks


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 31, 33, 100, 577])
def test_lowest_of_rows_of_every_kind_one_after_the_other(size):
    rng = np.random.default_rng(size)
    largest = np.finfo(np.float32).max
    rows = [
        rng.random(size) * 1e-44,  # subnormal, with ties
        rng.random(size) * largest,
        rng.integers(0, 4, size),
        np.zeros(size),
        np.where(rng.random(size) < 0.6, 0, rng.random(size)),
        np.where(rng.random(size) < 0.5, 1, np.nextafter(np.float32(1), np.float32(2))),
        np.full(size, largest),
        np.exp(rng.normal(0, 20, size)),
        1 + rng.integers(0, 9, size) * 2.0**-23,
    ]
    scores = np.array(rows, dtype=np.float32)
    for k in {0, 1, size // 3, size // 2, size - 1, size}:
        np.testing.assert_array_equal(lowest(scores, k), head_of_stable_sort(scores, k))
        np.testing.assert_array_equal(lowest(scores[::-1], k), head_of_stable_sort(scores[::-1], k))


def test_lowest_of_rows_that_lie_apart_in_memory():
    scores = np.float32(np.random.default_rng(2).integers(0, 6, size=(9, 5)))
    np.testing.assert_array_equal(lowest(scores.T, 4), head_of_stable_sort(scores.T, 4))


def test_bits_are_row_major_and_highest_first():
    mask = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=bool)
    assert pack(mask).tolist() == [0b10011000, 0b10000000]


def test_columns_that_m_does_not_divide_are_refused_by_name():
    with pytest.raises(MismatchError, match=r"layers\.0\.mlp\.up_proj: 6 input columns are not divisible by group_m 4"):
        keep(np.ones((2, 6)), rule="n_of_m", keep_n=2, group_m=4)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            {"rule": "unstructured", "sparsity": 1.0},
            r"^patterns\.test\.sparsity: found 1\.0; expected a share in \[0, 1\), or [^\n]*$",
        ),
        ({"rule": "unstructured", "sparsity": -0.1}, r"expected a share in \[0, 1\)"),
        ({"rule": "unstructured", "sparsity": 0.5, "group": "column"}, "'row', 'module', 'layer' or 'global'"),
        ({"rule": "unstructured"}, "sparsity: missing"),
        ({"rule": "unstructured", "sparsty": 0.5, "sparsity": 0.5}, "did you mean 'sparsity'"),
        ({"rule": "unstructred", "sparsity": 0.5}, "did you mean 'unstructured'"),
        ({"rule": "n_of_m", "keep_n": 5, "group_m": 4}, "keep_n 5 is more than group_m 4"),
        ({"rule": "n_of_m", "keep_n": 1, "group_m": 4, "sparsity": 0.25}, "removes 0.75, sparsity says 0.25"),
        ({"rule": "n_of_m", "keep_n": 2, "group_m": 4, "attention": False, "mlp": False}, "nothing would be pruned"),
        ({"rule": "unstructured", "sparsity": 0.5, "pruning_last": 1}, "set attention: false"),
        ({"rule": "wanda_variant", "sparsity": 1.5}, r"expected a share in \[0, 1\)"),
        ({"rule": "wanda_variant", "sparsity": 0.5, "group": "row"}, "group: unknown key"),
        ({"rule": "structured", "sparsity": 0.5, "attention": True}, "removes MLP neurons only: set attention: false"),
        ({"rule": "structured", "sparsity": 0.5, "lm_head": True}, "removes MLP neurons only.*lm_head: false"),
        ({"rule": "structured", "sparsity": 0.5, "mlp": False}, "nothing would be pruned"),
        ({"rule": "structured"}, "sparsity: missing"),
        ({"rule": "n_of_m", "keep_n": 2, "group_m": 4, "untie_lm_head": True}, "untie_lm_head without lm_head"),
        (
            {"rule": "unstructured", "sparsity": {"attention": 0.5, "mlp": 0.5}, "lm_head": True},
            "add lm_head to sparsity",
        ),
    ],
)
def test_bad_patterns_are_refused_with_the_fault(pattern, message):
    with pytest.raises(ParamsError, match=message):
        read_pattern(pattern, "patterns.test")


def test_pruning_last_selects_the_last_mlps_only():
    pattern = read_pattern({"rule": "unstructured", "sparsity": 0.5, "attention": False, "pruning_last": 2}, "p")
    selected = [(part, layer) for layer in range(4) for part in ("attention", "mlp") if pattern.selects(part, layer, 4)]
    assert selected == [("mlp", 2), ("mlp", 3)]


def test_a_row_of_100_at_029_loses_29():
    scores = np.arange(200, dtype=np.float32)[::-1].reshape(2, 100)
    kept = np.array(keep(scores, rule="unstructured", sparsity=0.29))  # int(0.29 * 100) is 28
    assert kept.sum(axis=1).tolist() == [71, 71]
    assert kept[:, 71:].sum() == 0


def test_the_output_head_is_one_group_with_its_own_share():
    head = MaskedModule("lm_head", "lm_head", "module")
    own = {"attention": 0.0, "mlp": 0.0, "lm_head": 0.25}
    pattern = {"rule": "unstructured", "sparsity": own, "group": "row", "lm_head": True}
    assert keep(WANDA_SCORES, head, **pattern) == [[1, 1, 0, 0], [1, 1, 1, 1]]
    everywhere = {"rule": "unstructured", "sparsity": 0.5, "group": "global", "lm_head": True}
    assert keep(WANDA_SCORES, head, **everywhere) == [[0, 0, 0, 0], [1, 1, 1, 1]]


# Wanda variant. Of the first row's sum 120 its smallest scores hold 1/12, 2/12, 3/12, 1; of the second's sum 16
# they hold 1/4, 1/2, 3/4, 1. A share of 1/4 removes three of the first row and one of the second: half of all.
VARIANT_SCORES = np.array([[10, 90, 10, 10], [4, 4, 4, 4]], dtype=np.float32)


def test_the_variant_removes_the_same_share_of_every_rows_sum():
    assert keep(VARIANT_SCORES, rule="wanda_variant", sparsity=0.5) == [[0, 1, 0, 0], [0, 1, 1, 1]]
    assert keep(VARIANT_SCORES, rule="unstructured", sparsity=0.5, group="row") == [[0, 1, 0, 1], [0, 0, 1, 1]]
    assert keep(VARIANT_SCORES, rule="unstructured", sparsity=0.5, group="module") == [[1, 1, 1, 1], [0, 0, 0, 0]]


def test_the_variant_of_nothing_keeps_even_zeros():
    assert keep([[0, 1, 2], [0, 0, 3]], rule="wanda_variant", sparsity=0.0) == [[1, 1, 1], [1, 1, 1]]


def test_a_variant_that_ties_make_impossible_is_refused():
    with pytest.raises(DegenerateError, match=r"up_proj: no share .* removes 16 of 40 weights.* from 10 to 20"):
        keep(np.ones((10, 4)), rule="wanda_variant", sparsity=0.4)
    dead_row = [[0] * 8, [1, 2, 3, 4, 5, 6, 7, 8]]
    with pytest.raises(DegenerateError, match=r"removes 4 of 16 weights.* from 0 to 8"):
        keep(dead_row, rule="wanda_variant", sparsity=0.25)


def naive_variant(scores: list[list[int]], asked: Fraction) -> tuple[int, list[list[int]]]:
    """Try every share that matters, in exact arithmetic: the floor of what is asked, else the closest, else fewer."""
    shares = {Fraction(sum(sorted(row)[:k]), sum(row)) for row in scores for k in range(1, len(row) + 1)}
    found = {0: [[1] * len(row) for row in scores]}
    for share in shares:
        mask = [[1] * len(row) for row in scores]
        for row, marks in zip(scores, mask, strict=True):
            held = 0
            for index in sorted(range(len(row)), key=row.__getitem__):
                held += row[index]
                if Fraction(held, sum(row)) <= share:
                    marks[index] = 0
        found[sum(row.count(0) for row in mask)] = mask
    count = asked // 1 if asked // 1 in found else min(sorted(found), key=lambda count: abs(count - asked))
    return count, found[count]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 6).flatmap(
        lambda columns: st.lists(
            st.lists(st.integers(1, 9), min_size=columns, max_size=columns), min_size=1, max_size=5
        )
    ),
    st.integers(1, 15),
)
def test_the_variant_finds_the_closest_share(scores, sixteenths):
    asked = Fraction(sixteenths, 16) * len(scores) * len(scores[0])
    count, expected = naive_variant(scores, asked)
    if abs(count - asked) > 1:
        with pytest.raises(DegenerateError):
            keep(scores, rule="wanda_variant", sparsity=sixteenths / 16)
    else:
        assert keep(scores, rule="wanda_variant", sparsity=sixteenths / 16) == expected


def test_structured_keeps_the_best_neurons_and_breaks_ties_low():
    scores = [3, 1, 2, 1, 1, 9, 0.5]
    assert keep(scores, rule="structured", sparsity=0.5) == [1, 0, 1, 0, 1, 1, 0]  # floor(3.5) = 3 go: 0.5, 1, 1
    assert keep(np.arange(100), rule="structured", sparsity=0.29) == [0] * 29 + [1] * 71


VALUES = [0.0, 1e-45, 1e-30, 0.5, 0.50000006, 1.0, 2.0, 3e38]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 6)).flatmap(
            lambda shape: st.lists(
                st.sampled_from(VALUES), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]
            ).map(lambda values: np.array(values, dtype=np.float32).reshape(shape))
        ),
        min_size=1,
        max_size=5,
    ),
    st.floats(0, 1),
)
def test_a_pools_cut_is_the_head_of_one_stable_sort(arrays, share):
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    k = int(share * flat.size)
    expected = np.zeros(flat.size, dtype=bool)
    expected[sorted(range(flat.size), key=flat.__getitem__)[:k]] = True
    cut = find_cut(lambda: arrays, k)
    found = [cut.remove(array) for array in arrays]
    assert [one.shape for one in found] == [array.shape for array in arrays]
    np.testing.assert_array_equal(np.concatenate([one.reshape(-1) for one in found]), expected)


def test_a_pool_larger_than_a_block_is_cut_exactly(monkeypatch):
    monkeypatch.setattr("neuronrank.masks._radix_select._BLOCK", 7)
    arrays = [np.float32(np.random.default_rng(seed).integers(0, 40, size=(3, 11)) / 8) for seed in range(4)]
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    expected = np.zeros(flat.size, dtype=bool)
    expected[np.argsort(flat, kind="stable")[:50]] = True
    cut = find_cut(lambda: arrays, 50)
    np.testing.assert_array_equal(np.concatenate([cut.remove(array).reshape(-1) for array in arrays]), expected)
