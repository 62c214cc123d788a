"""The sketch of |a|: its promised accuracy against numpy, and the compiled loops against plain PyTorch."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronrank import team
from neuronrank.accumulation import Accumulation
from neuronrank.errors import ParamsError
from neuronrank.profiles import PROFILES
from neuronrank.sketch import EDGES, HIGHEST_OCTAVE, LOWEST_OCTAVE, N_BINS, MagnitudeSketch, nearest_edge
from neuronrank.statistics import Context, Labels, Tapped, class_moments, document_sums, magnitude_sketch, topic_sums
from tests import naive_methods

LOWEST, HIGHEST = 2.0**LOWEST_OCTAVE, 2.0**HIGHEST_OCTAVE


def bin_of(value: float) -> int:
    """Bin b is (EDGES[b-1], EDGES[b]]: a search, where the library looks at bits."""
    return int(np.searchsorted(naive_methods.edges(), abs(value), side="left"))


def accumulate(x: np.ndarray, profile: str = "full", tap: str = "neuron", chunks: int = 1) -> dict:
    """Send (T, C) through the accumulator, in so many updates, and return its arrays of one tap."""
    tokens = torch.zeros(1, len(x), dtype=torch.long)
    accumulation = Accumulation(Context(1, PROFILES[profile], tokens, 0, tokens, 0, gram=False))
    for part in np.array_split(x.astype(np.float32), chunks):
        accumulation.add(tap, Tapped.of(torch.from_numpy(part.copy()), slice(0, 1), len(part)))
    return {name: values.numpy() for (_, name), values in accumulation.result().items()}


def sketch_of(x: np.ndarray) -> MagnitudeSketch:
    found = accumulate(x)
    return MagnitudeSketch(found["sketch_count"], np.abs(x.astype(np.float32)).sum(axis=0, dtype=np.float64))


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
    # ten of 1.25, 0.5, 0.25, 0.125 and zeros: one a bin, each within 2 % of its middle
    x = np.array([0, 0.25, 0, 1.25, 0, 0, 0.125, 0.5, 0, 0])[:, None]
    sketch = sketch_of(x)
    assert sketch.top_mean(0.9)[0] == pytest.approx(1.25, rel=0.02)
    assert sketch.top_mean(0.85)[0] == pytest.approx(0.875, rel=0.02)  # ceil(1.5) = 2
    assert sketch.top_mean(0.7)[0] == pytest.approx(2 / 3, rel=0.02)  # (1 - 0.7) * 10 is a little above 3
    assert sketch.top_mean(0.2)[0] == pytest.approx(2.125 / 8, rel=1e-6)  # all that is not zero: the exact sum


def test_a_top_mean_meets_the_exact_sum():
    """By hand: 1.0 is the upper end of its bin, 1.25 near the lower end of its own."""
    x = np.repeat([1.0, 1.25], [30, 10])[:, None]
    edges = naive_methods.edges()
    lower, upper = ((edges[bin_of(value) - 1] + edges[bin_of(value)]) / 2 for value in (1.0, 1.25))
    scale = (30 * 1.0 + 10 * 1.25) / (30 * lower + 10 * upper)
    assert abs(scale - 1) > 5e-3
    assert sketch_of(x).top_mean(0.75)[0] == pytest.approx(scale * upper, rel=1e-9)


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
    negative = found["sketch_negative_count"][0]
    assert (negative[0], negative[N_BINS - 2], negative[-1], negative.sum()) == (2, 0, 1, 3)  # -0.0 has a sign
    sketch = sketch_of(x[:, None])
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
        if name.startswith("sketch"):
            assert np.array_equal(chunked[name], values), name
            assert np.array_equal(one[name] + other[name], values), name


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


def tapped(x: torch.Tensor) -> Tapped:
    """As one document."""
    return Tapped.of(x, slice(0, 1), len(x))


def strips(n_channels: int) -> list[tuple[int, int]]:
    """Uneven parts, as threads get them."""
    edges = sorted({0, n_channels // 3, n_channels // 2, n_channels})
    return list(itertools.pairwise(edges))


SHAPES = [(1, 1), (37, 5), (50, 64), (23, 65), (41, 130), (9, 191)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_signs", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_compiled_sketch_is_the_plain_one(shape, n_signs, dtype):
    x = awkward(*shape).clamp(-6e4, 6e4).to(dtype) if dtype == torch.float16 else awkward(*shape).to(dtype)
    compiled, plain = (torch.zeros(shape[1], n_signs * N_BINS, dtype=torch.int32) for _ in range(2))
    for _ in range(2):  # they add
        for strip in strips(shape[1]):
            magnitude_sketch.add_compiled(tapped(x), strip, compiled)
        magnitude_sketch.add_plain(tapped(x), (0, shape[1]), plain)
    assert torch.equal(compiled, plain)
    expected = np.zeros((shape[1], n_signs, N_BINS), dtype=int)
    for (_, c), value in np.ndenumerate(x.double().numpy()):
        expected[c, int(np.signbit(value)) if n_signs == 2 else 0, bin_of(value)] += 2
    assert np.array_equal(compiled.view(shape[1], n_signs, N_BINS), expected)


FLOATS = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("shape", [*SHAPES, (150, 300)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_compiled_group_sums_are_the_plain_ones(shape, dtype):
    x = awkward(*shape).clamp(-1e3, 1e3).to(dtype)
    group = torch.from_numpy(np.random.default_rng(1).integers(0, 4, shape[0]))  # group 4 stays empty
    labels = Labels(group[None])
    moments = [[torch.full((5, shape[1]), 0.5, dtype=torch.float64) for _ in range(2)] for _ in range(2)]
    magnitudes = [torch.full((5, shape[1]), 0.5, dtype=torch.float64) for _ in range(2)]
    for strip in strips(shape[1]):
        class_moments.add_compiled(tapped(x), strip, labels, *moments[0])
        topic_sums.add_compiled("sum_abs", tapped(x), strip, labels, magnitudes[0])
    class_moments.add_plain(tapped(x), (0, shape[1]), labels, *moments[1])
    topic_sums.add_plain("sum_abs", tapped(x), (0, shape[1]), labels, magnitudes[1])
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
        scale = 0.5 + np.array([np.abs(define(r)).sum(axis=0) for r in rows])
        assert np.max(np.abs(found.numpy() - expected) / scale) < 4e-6  # 32 values of all sizes in float32


def test_squared_deviations_of_alike_tokens_survive_the_float32_loop():
    """Values near 100 that differ in the fourth digit: a float32 sum of squares would lose their variance."""
    rng = np.random.default_rng(4)
    x = torch.from_numpy((100 + 0.01 * rng.standard_normal((200, 3))).astype(np.float32))
    sums, sums_sq = (torch.zeros(1, 3, dtype=torch.float64) for _ in range(2))
    class_moments.add_compiled(tapped(x), (0, 3), Labels(torch.zeros(1, 200, dtype=torch.long)), sums, sums_sq)
    variance = (sums_sq / 200 - (sums / 200) ** 2).numpy()[0]
    np.testing.assert_allclose(variance, x.double().numpy().var(axis=0), rtol=1e-4)


@pytest.mark.parametrize("shape", [*SHAPES, (150, 300)])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("wanted", ["111111", "011001", "001000", "100110"])
def test_the_compiled_document_sums_are_the_plain_ones(shape, dtype, wanted):
    x = awkward(*shape).clamp(-1e3, 1e3)
    x[0, 0] = float(np.nextafter(np.float32(1e-6), np.float32(1)))
    x = torch.stack([x, x.flip(0) * 0.25, -x]).to(dtype)  # (3, T, C)
    flags = tuple(flag == "1" for flag in wanted)
    compiled, plain = ({}, {})
    for add, found, pieces in (
        (document_sums.add_compiled, compiled, strips(shape[1])),
        (document_sums.add_plain, plain, [(0, shape[1])]),
    ):
        sums = torch.full((4, 4, shape[1]), torch.nan)
        across = torch.full((shape[1],), torch.inf), torch.zeros(2, shape[1], dtype=torch.int32)
        for strip in pieces:
            add(Tapped.of(x, slice(1, 4), x.shape[1]), strip, flags, sums, across)
        assert sums[:, 0].isnan().all()  # another document
        names = ("sum", "sum_abs", "sum_sq", "max_abs")
        found |= {name: sums[k, 1:] for k, name in enumerate(names)} | {"min": across[0]}
        found |= {"n_positive": across[1][0], "n_above_floor": across[1][1]}
    wide = x.double().numpy()
    expected = {
        "sum": wide.sum(axis=1),
        "sum_abs": np.abs(wide).sum(axis=1),
        "sum_sq": (wide**2).sum(axis=1),
        "max_abs": np.abs(wide).max(axis=1),
        "min": wide.min(axis=(0, 1)),
        "n_positive": (wide > 0).sum(axis=(0, 1)),
        "n_above_floor": (np.abs(wide) > np.float32(1e-6)).sum(axis=(0, 1)),
    }
    assert compiled.keys() == plain.keys() == expected.keys()
    kept = dict(zip(("sum", "sum_abs", "sum_sq", "max_abs", "min", "n_positive"), flags, strict=True))
    kept["n_above_floor"] = kept["n_positive"]
    for name, values in expected.items():
        is_sum = name in ("sum", "sum_abs", "sum_sq")
        scale = np.maximum(1e-30, np.abs(wide).sum(axis=1) if name == "sum" else values) if is_sum else 1.0
        assert np.max(np.abs(plain[name].double().numpy() - values) / scale) <= (1e-6 if is_sum else 0), name
        if kept[name]:
            assert np.max(np.abs(compiled[name].double().numpy() - values) / scale) <= (2e-6 if is_sum else 0), name


def test_a_transposed_tensor_is_counted_like_its_copy():
    x = awkward(37, 70)
    one, other = (torch.zeros(70, N_BINS, dtype=torch.int32) for _ in range(2))
    magnitude_sketch.add_compiled(tapped(x), (0, 70), one)
    magnitude_sketch.add_compiled(tapped(x.T.contiguous().T), (0, 70), other)
    assert torch.equal(one, other)


@pytest.mark.parametrize("n_threads", [2, 3, 7])
@pytest.mark.parametrize("openmp", [True, False])
def test_threads_do_not_change_a_bit(n_threads, openmp, monkeypatch):
    if not openmp:
        monkeypatch.setattr(team, "_gnu_openmp", lambda: None)
    x = awkward(90, 700).clamp(-1e3, 1e3).reshape(3, 30, 700).bfloat16()
    groups = torch.from_numpy(np.random.default_rng(2).integers(0, 4, (3, 30)))

    def found(threads: int) -> dict:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        accumulation = Accumulation(Context(3, PROFILES["full"], groups, 4, groups, 4, gram=True))
        accumulation.add("neuron", Tapped.of(x[:2], slice(0, 2), 30))
        accumulation.add("neuron", Tapped.of(x[2:], slice(2, 3), 30))
        accumulation.add("mlp_in", Tapped.of(x, slice(0, 3), 30))
        return accumulation.result()

    alone, together = found(1), found(n_threads)
    assert alone.keys() == together.keys()
    assert len(alone) == 27
    assert ("mlp_in", "gram") in alone
    for key, values in alone.items():
        assert torch.equal(values, together[key]), key


@pytest.mark.parametrize("quantile", [-0.1, 1.7, float("nan")])
def test_a_quantile_that_there_is_not_is_refused(quantile):
    with pytest.raises(ParamsError, match="expected from 0 to 1"):
        sketch_of(np.ones((3, 1))).quantile(quantile)
