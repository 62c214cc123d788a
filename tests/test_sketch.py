"""The sketch of |a|: its promised accuracy against numpy, and the compiled loops against plain PyTorch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronrank import kernels
from neuronrank.profiles import PROFILES
from neuronrank.sketch import EDGES, HIGHEST_OCTAVE, LOWEST_OCTAVE, N_BINS, N_OCTAVES, MagnitudeSketch, nearest_edge
from neuronrank.statistics import Context, class_moments, document_sums, magnitude_sketch, topic_sums
from tests import naive_methods

LOWEST, HIGHEST = 2.0**LOWEST_OCTAVE, 2.0**HIGHEST_OCTAVE


def bin_of(value: float) -> int:
    """Bin b is (EDGES[b-1], EDGES[b]]: a search, where the library looks at bits."""
    return int(np.searchsorted(naive_methods.edges(), abs(value), side="left"))


def octave_of(value: float) -> int:
    """0 up to 2^-24, then one for each (2^e, 2^(e+1)], and one above 2^16."""
    if abs(value) <= LOWEST:
        return 0
    return min(math.ceil(math.log2(abs(value))) - LOWEST_OCTAVE, N_OCTAVES - 1)


def accumulate(x: np.ndarray, profile: str = "full", tap: str = "neuron", chunks: int = 1) -> dict:
    """Send (T, C) through the accumulator, in so many updates, and return its arrays of one tap."""
    tokens = torch.zeros(1, len(x), dtype=torch.long)
    accumulator = magnitude_sketch.Accumulator(Context(1, PROFILES[profile], tokens, 0, tokens, 0, gram=False))
    for part in np.array_split(x.astype(np.float32), chunks):
        accumulator.update(slice(0, 1), tap, torch.from_numpy(part.copy())[None])
    return {name: values.numpy() for (_, name), values in accumulator.result().items()}


def sketch_of(x: np.ndarray) -> MagnitudeSketch:
    found = accumulate(x)
    return MagnitudeSketch(found["sketch_count"], found["sketch_octave_sum_abs"].astype(np.float64))


def float32(values) -> np.ndarray:
    return np.asarray(values, dtype=np.float32).astype(np.float64)


def adversarial() -> dict[str, np.ndarray]:
    """Name -> (T,) magnitudes inside the grid, where a sketch by bins is at its worst."""
    rng = np.random.default_rng(3)
    above = np.nextafter(EDGES[:-1].astype(np.float32), np.float32(np.inf))
    return {
        "one token": np.array([0.3]),
        "two far apart": np.array([1e-6, 6e4]),
        "three": np.array([0.011, 7.0, 7.1]),
        "all equal": np.full(50, 0.777),
        "equal at an edge": np.full(50, EDGES[400]),
        "just above an edge": np.full(50, above[400]),
        "every edge": EDGES,
        "just above every edge": above,
        "lower end against upper end of a bin": np.repeat([above[410], EDGES[411]], [90, 10]),
        "mostly zero": np.concatenate([np.zeros(97), [0.5, 0.6, 0.9]]),
        "half zero": np.concatenate([np.zeros(50), np.linspace(0.1, 5, 50)]),
        "over all octaves": np.exp2(rng.uniform(LOWEST_OCTAVE + 0.01, HIGHEST_OCTAVE, 300)),
        "heavy tail": np.clip(np.abs(rng.standard_cauchy(700)), 1e-6, 6e4),
    }


@pytest.mark.parametrize("name", adversarial())
@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.6, 0.99])
def test_quantiles_are_within_two_percent(name, quantile):
    x = float32(adversarial()[name])
    (found,) = sketch_of(x[:, None]).quantile(quantile)
    assert found == pytest.approx(np.quantile(x, quantile), rel=0.02, abs=1e-12)


inside = st.floats(LOWEST, HIGHEST, width=32, exclude_min=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(inside, st.just(0.0), st.sampled_from(list(EDGES[1:]))), min_size=1, max_size=60))
def test_any_values_inside_the_grid_keep_the_promises(values):
    x = float32(values)
    sketch = sketch_of(x[:, None])
    for quantile in (0.5, 0.99):
        assert sketch.quantile(quantile)[0] == pytest.approx(np.quantile(x, quantile), rel=0.02, abs=1e-12)
    for quantile in (0.5, 0.9):
        k = math.ceil((1 - quantile) * len(x) - 1e-9)
        assert sketch.top_mean(quantile)[0] == pytest.approx(np.sort(x)[-k:].mean(), rel=0.04)
    for edge in (0, 7, 400, EDGES.size - 1):
        assert sketch.count_above(np.array([edge]))[0] == np.count_nonzero(x > EDGES[edge])


def realistic() -> dict[str, np.ndarray]:
    """Name -> (T, C) values as taps have them: widths over octaves, tails, gates that are almost shut."""
    rng = np.random.default_rng(7)
    normal = rng.standard_normal((2048, 5)) * [0.01, 0.3, 1, 4, 50]
    gate = rng.standard_normal((2048, 4)) * [0.5, 1, 2, 4] - 1
    return {
        "normal": normal,
        "heavy tail": rng.standard_t(2, (2048, 4)) * [0.05, 0.4, 1, 9],
        "silu of a gate": gate / (1 + np.exp(-gate)),
        "uniform": rng.uniform(0, [0.7, 1.0, 1.3, 1.7], (2048, 4)),
        "one massive token": np.concatenate([normal[:-1, :4], [[900.0, 30, 2000, 8]]]),
        "bfloat16": torch.from_numpy(normal).bfloat16().double().numpy(),
    }


@pytest.mark.parametrize("name", realistic())
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 0.99])
def test_top_means_of_realistic_sizes_are_within_one_percent_and_the_deepest_within_two(name, quantile):
    x = np.abs(float32(realistic()[name]))
    k = math.ceil((1 - quantile) * len(x) - 1e-9)
    expected = np.sort(x, axis=0)[-k:].mean(axis=0)
    worst = np.max(np.abs(sketch_of(x).top_mean(quantile) / expected - 1))
    assert worst < (1e-2 if quantile <= 0.9 else 2e-2)


@pytest.mark.parametrize("name", sorted(set(adversarial()) - {"mostly zero"}))
@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9, 0.99])
def test_top_means_are_never_off_by_more_than_four_percent(name, quantile):
    x = float32(adversarial()[name])
    k = math.ceil((1 - quantile) * len(x) - 1e-9)
    assert sketch_of(x[:, None]).top_mean(quantile)[0] == pytest.approx(np.sort(x)[-k:].mean(), rel=0.04)


def test_the_top_mean_counts_up_to_the_next_whole_token():
    # 1.25, 0.5, 0.25, 0.125 and six zeros: whole octaves, whose sums are exact
    x = np.array([0, 0.25, 0, 1.25, 0, 0, 0.125, 0.5, 0, 0])[:, None]
    sketch = sketch_of(x)
    assert sketch.top_mean(0.9)[0] == pytest.approx(1.25, rel=1e-6)
    assert sketch.top_mean(0.85)[0] == pytest.approx(0.875, rel=1e-6)  # ceil(1.5) = 2
    assert sketch.top_mean(0.7)[0] == pytest.approx(2 / 3, rel=1e-6)  # (1 - 0.7) * 10 is a little above 3
    assert sketch.top_mean(0.2)[0] == pytest.approx(2.125 / 8, rel=1e-6)


def test_every_edge_and_its_neighbours_fall_in_the_bin_of_a_search():
    on = EDGES.astype(np.float32)
    assert np.array_equal(on, EDGES)  # edges are floats
    assert np.array_equal(on, torch.from_numpy(EDGES).bfloat16().double().numpy())
    assert np.array_equal(EDGES, naive_methods.edges())
    x = np.concatenate([np.nextafter(on, np.float32(0)), on, np.nextafter(on, np.float32(np.inf))])
    found = accumulate(np.diag(x), tap="neuron")["sketch_count"]  # channel c holds x_c and zeros
    for c in (*range(0, len(x), 13), *range(EDGES.size - 20, EDGES.size + 20), *range(len(x) - 20, len(x)), 0, 1):
        expected = np.zeros(N_BINS, dtype=int)
        expected[bin_of(x[c])] += 1
        expected[0] += len(x) - 1
        assert np.array_equal(found[c], expected), x[c]
    assert np.max(EDGES[1:] / EDGES[:-1]) <= 1.04


def test_zeros_underflow_and_overflow_have_bins_of_their_own():
    tiny = np.float32(1e-45)  # subnormal
    x = float32([0.0, -0.0, tiny, LOWEST, -LOWEST, np.nextafter(np.float32(LOWEST), np.float32(1)), 0.75])
    x = np.concatenate([x, [HIGHEST, -HIGHEST * 1.5, 3e38]])
    found = accumulate(x[:, None])
    count = found["sketch_count"][0]
    assert (count[0], count[1], count[bin_of(0.75)], count[N_BINS - 2], count[-1]) == (5, 1, 1, 1, 2)
    assert count.sum() == 10
    sums = found["sketch_octave_sum_abs"][0].astype(np.float64)
    assert sums[0] == pytest.approx(2 * LOWEST)  # the subnormal drowns
    assert (sums[1], sums[24]) == (pytest.approx(LOWEST), 0.75)
    assert (sums[-2], sums[-1]) == (HIGHEST, pytest.approx(3e38))
    negative = found["sketch_negative_count"][0]
    assert (negative[0], negative[N_BINS - 2], negative[-1], negative.sum()) == (2, 0, 1, 3)  # -0.0 has a sign
    assert found["total_min"][0] == -HIGHEST * 1.5
    assert (found["n_positive"][0], found["n_above_floor"][0]) == (6, 4)
    sketch = MagnitudeSketch(found["sketch_count"], found["sketch_octave_sum_abs"].astype(np.float64))
    assert sketch.quantile(0.1)[0] == 0
    assert sketch.quantile(1.0)[0] == pytest.approx((3e38 + HIGHEST * 1.5) / 2)  # beyond the grid: the bin's mean
    assert sketch.top_mean(0.8)[0] == pytest.approx((3e38 + HIGHEST * 1.5) / 2)
    assert sketch.count_above(np.array([0]))[0] == 5
    assert sketch.count_above(np.array([EDGES.size - 1]))[0] == 2


def test_counts_above_an_edge_are_exact_and_strict():
    rng = np.random.default_rng(5)
    x = float32(np.abs(rng.standard_normal((400, 3))) * [0.1, 1, 10])
    index = np.array([390, 450, 510])
    x[:37, 0], x[:41, 1], x[:43, 2] = EDGES[index]  # at the edge: not above it
    expected = [np.count_nonzero(x[:, c] > EDGES[index[c]]) for c in range(3)]
    assert min(expected) > 0
    assert sketch_of(x).count_above(index).tolist() == expected
    assert sketch_of(x).count_above(np.array([450])).tolist() == [np.count_nonzero(c > EDGES[450]) for c in x.T]


def test_two_halves_add_up_to_the_whole():
    rng = np.random.default_rng(11)
    x = rng.standard_normal((301, 5)) * [0.001, 0.1, 1, 30, 1e5]
    whole, one, other = accumulate(x), accumulate(x[:117]), accumulate(x[117:])
    chunked = accumulate(x, chunks=7)
    for name, values in whole.items():
        assert np.array_equal(chunked[name], values), name
        together = np.minimum(one[name], other[name]) if name == "total_min" else one[name] + other[name]
        if name.endswith("sum_abs"):
            np.testing.assert_allclose(together, values, rtol=2e-7)
        else:
            assert np.array_equal(together, values), name


@pytest.mark.parametrize("quantile", [0.05, 0.6, 0.93])
def test_the_pooled_edge_is_that_of_a_search_over_all_values(quantile):
    rng = np.random.default_rng(13)
    x = float32(rng.standard_normal((150, 4)) * [0.05, 0.4, 1, 8])
    assert EDGES[sketch_of(x).pooled_edge(quantile)] == naive_methods.pooled_edge(x, quantile)


def test_of_two_edges_equally_near_to_the_pooled_quantile_the_lower_is_taken():
    # 8 values in 2 channels; 3 are at most 0.5, 5 at most 1: the share 4/8 lies between the two
    x = np.array([[0.5, 0.25], [1.0, 0.5], [1.0, 4.0], [4.0, 4.0]])
    sketch = sketch_of(x)
    at_half = int(np.searchsorted(EDGES, 0.5))
    assert sketch.pooled_edge(0.5) == at_half
    assert sketch.pooled_edge(0.51) == int(np.searchsorted(EDGES, 1.0))
    assert sketch.pooled_edge(0.49) == at_half


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-9, 1e6))
def test_the_nearest_edge_is_that_of_a_search(value):
    found = EDGES[nearest_edge(np.array([value]))[0]]
    expected = naive_methods.nearest_edge(value)
    assert abs(math.log(found / value)) == pytest.approx(abs(math.log(expected / value)), rel=1e-9, abs=1e-12)
    if LOWEST <= value <= HIGHEST:
        assert max(found / value, value / found) <= math.sqrt(1.04) + 1e-9


def test_the_nearest_edge_of_edges_ends_and_zero():
    assert np.array_equal(nearest_edge(EDGES), np.arange(EDGES.size))
    assert nearest_edge(np.array([0.0, 1e-30, 1e9])).tolist() == [0, 0, EDGES.size - 1]


# The compiled loops. 64 channels make a block.


def awkward(n_tokens: int, n_channels: int) -> torch.Tensor:
    """(T, C) over every octave with zeros of both signs, subnormals, edges and what lies beyond the grid."""
    rng = np.random.default_rng([n_tokens, n_channels])
    x = rng.standard_normal((n_tokens, n_channels)) * np.exp2(rng.integers(-30, 20, (n_tokens, n_channels)))
    special = np.array([0.0, -0.0, 1e-45, -1e-45, 1e-39, LOWEST, -LOWEST, HIGHEST, -2 * HIGHEST, 1e-6, -1.0, *EDGES])
    chosen = rng.random(x.shape) < 0.3
    x[chosen] = rng.choice(special, chosen.sum())
    return torch.from_numpy(x.astype(np.float32))


SHAPES = [(1, 1), (37, 5), (50, 64), (23, 65), (41, 130), (9, 191)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_signs", [1, 2])
def test_the_compiled_sketch_is_the_plain_one(shape, n_signs):
    x = awkward(*shape)
    tables = magnitude_sketch._bin_of_code(), torch.from_numpy(magnitude_sketch.OCTAVE_OF_BIN.astype(np.int16))
    results = []
    for add in (magnitude_sketch._add_compiled, magnitude_sketch.add_plain):
        count = torch.zeros(n_signs, shape[1], N_BINS, dtype=torch.int32)
        octaves = torch.zeros(shape[1], N_OCTAVES, dtype=torch.float64)
        for _ in range(2):  # they add
            add(x, *tables, count, octaves)
        results.append((count.numpy(), octaves.numpy()))
    (count, octaves), (plain_count, plain_octaves) = results
    assert np.array_equal(count, plain_count)
    np.testing.assert_allclose(octaves, plain_octaves, rtol=1e-12)
    expected = np.zeros((n_signs, shape[1], N_BINS), dtype=int)
    expected_octaves = np.zeros((shape[1], N_OCTAVES))
    for (_, c), value in np.ndenumerate(x.double().numpy()):
        expected[int(np.signbit(value)) if n_signs == 2 else 0, c, bin_of(value)] += 2
        expected_octaves[c, octave_of(value)] += 2 * abs(value)
    assert np.array_equal(count, expected)
    np.testing.assert_allclose(octaves, expected_octaves, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_compiled_counts_are_the_plain_ones(shape):
    x = awkward(*shape)
    x[0, 0] = float(np.nextafter(np.float32(1e-6), np.float32(1)))
    positive, above = np.full(shape[1], 3, dtype=np.int32), np.full(shape[1], 5, dtype=np.int32)
    kernels.add_counts(x.numpy(), magnitude_sketch.FLOOR, positive, above)
    assert positive.tolist() == (3 + (x > 0).sum(dim=0)).tolist()
    assert above.tolist() == (5 + (x.double().abs() > 1e-6).sum(dim=0)).tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_compiled_group_sums_are_the_plain_ones(shape):
    x = awkward(*shape).clamp(-1e3, 1e3)
    group = torch.from_numpy(np.random.default_rng(1).integers(0, 4, shape[0]))  # group 4 stays empty
    moments = [[torch.full((5, shape[1]), 0.5, dtype=torch.float64) for _ in range(2)] for _ in range(2)]
    class_moments._add_compiled(x, group, *moments[0])
    class_moments.add_plain(x, group, *moments[1])
    magnitudes = [torch.full((5, shape[1]), 0.5, dtype=torch.float64) for _ in range(2)]
    kernels.add_magnitudes(x.numpy(), group.numpy(), magnitudes[0].numpy())
    topic_sums.add_plain("sum_abs", x, group, magnitudes[1])
    rows = [x.double().numpy()[group.numpy() == g] for g in range(5)]
    for found, define in (
        (moments[0][0], lambda r: r),
        (moments[1][0], lambda r: r),
        (moments[0][1], np.square),
        (moments[1][1], np.square),
        (magnitudes[0], np.abs),
        (magnitudes[1], np.abs),
    ):
        expected = 0.5 + np.array([define(r).sum(axis=0) for r in rows])
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_compiled_document_sums_are_the_plain_ones(shape):
    x = awkward(*shape).clamp(-1e3, 1e3)
    x = torch.stack([x, x.flip(0) * 0.25, -x])  # (3, T, C)
    compiled, plain = document_sums._reduce_compiled(x), document_sums.reduce_plain(x)
    wide = x.double().numpy()
    expected = {
        "sum": wide.sum(axis=1),
        "sum_abs": np.abs(wide).sum(axis=1),
        "sum_sq": (wide**2).sum(axis=1),
        "max_abs": np.abs(wide).max(axis=1),
    }
    assert compiled.keys() == plain.keys() == expected.keys()
    for name, values in expected.items():
        scale = np.maximum(1e-30, np.abs(wide).sum(axis=1) if name == "sum" else values)
        assert np.max(np.abs(compiled[name].numpy() - values) / scale) < 1e-12, name
        assert np.max(np.abs(plain[name].double().numpy() - values) / scale) < 1e-6, name


def test_a_transposed_tensor_is_counted_like_its_copy():
    x = awkward(37, 70)
    one, other = (
        magnitude_sketch.Accumulator(
            Context(1, PROFILES["full"], torch.zeros(1, 37), 0, torch.zeros(1, 37), 0, gram=False)
        )
        for _ in range(2)
    )
    one.update(slice(0, 1), "neuron", x[None])
    other.update(slice(0, 1), "neuron", x.T.contiguous().T[None])
    for key, values in one.result().items():
        assert torch.equal(values, other.result()[key]), key
