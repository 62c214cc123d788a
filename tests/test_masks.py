"""Masks against hand-computed examples and a naive stable sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronrank.errors import MismatchError, ParamsError
from neuronrank.mask_store import pack
from neuronrank.masks import MaskedModule, lowest, n_removed
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
            r"^patterns\.test\.sparsity: found 1\.0; value error, expected a share in \[0, 1\), or [^\n]*$",
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
    ],
)
def test_bad_patterns_are_refused_with_the_fault(pattern, message):
    with pytest.raises(ParamsError, match=message):
        read_pattern(pattern, "patterns.test")


def test_pruning_last_selects_the_last_mlps_only():
    pattern = read_pattern({"rule": "unstructured", "sparsity": 0.5, "attention": False, "pruning_last": 2}, "p")
    selected = [(part, layer) for layer in range(4) for part in ("attention", "mlp") if pattern.selects(part, layer, 4)]
    assert selected == [("mlp", 2), ("mlp", 3)]
