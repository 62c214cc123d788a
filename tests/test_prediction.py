"""What a collection is told to need, against arithmetic by hand."""

import logging

import pytest

from neuronrank.prediction import collected_shape, predict


def module(layer: int, shape: tuple[int, int], taps: tuple[str, str], axis: str) -> dict:
    return {"layer": layer, "shape": list(shape), "input_tap": taps[0], "neuron_tap": taps[1], "neuron_axis": axis}


MODULES = [
    entry
    for layer in range(3)
    for entry in (
        module(layer, (6, 4), ("attn_in", "q_out"), "row"),
        module(layer, (2, 4), ("attn_in", "k_out"), "row"),
        module(layer, (2, 4), ("attn_in", "v_out"), "row"),
        module(layer, (4, 6), ("attn_ctx", "attn_ctx"), "column"),
        module(layer, (10, 4), ("mlp_in", "neuron"), "row"),
        module(layer, (4, 10), ("mlp_mid", "neuron"), "column"),
    )
]
KEPT = {"classes": 5, "micro_topics": 3, "gram": False}


def test_arithmetic_is_two_for_each_weight_and_token_and_causal_attention():
    needs = predict(collected_shape(MODULES, (7, 8), KEPT), "wanda", 4, 2, 0)
    weights = 6 * 4 + 2 * 4 + 2 * 4 + 4 * 6 + 10 * 4 + 4 * 10
    scores_and_values = sum(2 * 2 * 6 * (position + 0.5) for position in range(8))  # of one document
    assert needs.flop == pytest.approx(3 * (2 * 7 * 8 * weights + 7 * scores_and_values))


def test_disk_holds_the_hidden_states_twice_and_the_arrays():
    needs = predict(collected_shape(MODULES, (7, 8), KEPT), "wanda", 4, 2, 0)
    totals = 3 * 8 * (4 + 6 + 4 + 10)  # float64, of the four inputs
    weight_vectors = 3 * 3 * 4 * sum(sum(entry["shape"]) for entry in MODULES[:6])
    tokens = 7 * 8 * 4
    assert needs.disk_bytes == pytest.approx(0.35 * (totals + weight_vectors + tokens) + 2 * 7 * 8 * 4 * 4)


def test_memory_grows_with_what_is_kept_and_with_the_embeddings():
    shape = collected_shape(MODULES, (700, 80), KEPT)
    lean, standard, full = (predict(shape, profile, 4, 2, 0).ram_bytes for profile in ("lean", "standard", "full"))
    assert lean < standard < full
    assert predict(shape, "lean", 4, 2, 10**9).ram_bytes - predict(shape, "lean", 4, 2, 0).ram_bytes > 10**9
    more = collected_shape(MODULES, (700, 80), {**KEPT, "classes": 10**6})
    assert predict(more, "standard", 4, 2, 0).ram_bytes - standard >= 1.2 * 16 * (10**6 - 5) * 10  # two float64 sums


def test_the_stage_tells_before_it_starts(project, caplog):
    caplog.set_level(logging.INFO, logger="neuronrank")
    assert project.collect().exit_code == 0
    (line,) = [record.message for record in caplog.records if "needs about" in record.message]
    assert line.startswith("needs about 0.7 GiB RAM, 0.0 GiB disk, 0 GFLOP")
