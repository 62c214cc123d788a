"""Collection on a tiny model against plain hooks on a plain forward."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from neuronrank.checkpoint import Checkpoint, require_finite
from neuronrank.collection import CollectParams, collect_layers, find_classes
from neuronrank.errors import NotFiniteError, UnknownName
from neuronrank.profiles import PROFILES
from neuronrank.skeleton import layout_of
from neuronrank.statistics import weight_sums
from neuronrank.streaming import StreamedModel
from tests import naive

TOKENS = torch.randint(64, (5, 11), generator=torch.Generator().manual_seed(1))
CPU = torch.device("cpu")


def params(**changes) -> CollectParams:
    topics = {"micro_topics": 6, "iterations": 4, "seed": 0}
    settings = {"dtype": "float32", "documents_per_batch": 2, "profile": "full", "classes": 7, "topics": topics}
    return CollectParams.model_validate({**settings, **changes})


def collect(directory, tokens=TOKENS, device=CPU, **changes):
    options = params(**changes)
    model = StreamedModel(Checkpoint(directory), torch.float32, device)
    return list(collect_layers(model, tokens, options, find_classes(tokens, options)))


@pytest.fixture(scope="module")
def layers(tiny_model):
    return collect(tiny_model)


@pytest.fixture(scope="module")
def caught(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()
    return naive.activations(model, TOKENS.numpy(), [0, 1])


def test_every_sum_of_every_tap_agrees_with_its_definition(layers, caught):
    definitions = {
        "sum": lambda x: x.sum(axis=1),
        "sum_abs": lambda x: np.abs(x).sum(axis=1),
        "sum_sq": lambda x: (x**2).sum(axis=1),
        "max_abs": lambda x: np.abs(x).max(axis=1),
    }
    checked = 0
    for layer in layers:
        for tap in PROFILES["full"].taps:
            for statistic, define in definitions.items():
                values, expected = layer.arrays[tap, statistic], define(caught[layer.index, tap])
                assert values.dtype == np.float32
                np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
                checked += 1
    assert checked == 2 * 9 * 4


def test_widths_follow_the_model_and_not_the_hidden_size(layers):
    widths = {tap: values.shape[1] for (tap, name), values in layers[0].arrays.items() if name == "sum_abs"}
    assert widths == {
        "attn_in": 24, "q_out": 32, "k_out": 16, "v_out": 16, "attn_ctx": 32, "mlp_in": 24, "neuron": 40, "mlp_mid": 40,
        "gate_pre": 40,
    }  # fmt: skip


@pytest.mark.parametrize("in_files", [False, True])
def test_streaming_ends_in_the_hidden_states_of_the_plain_forward(tiny_model, tmp_path, in_files):
    directory = tmp_path if in_files else None
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    last = {}
    handle = model.model.layers[-1].register_forward_hook(lambda _m, _x, y: last.update(hidden=y))
    with torch.no_grad():
        model(TOKENS, use_cache=False)
    handle.remove()
    streamed = StreamedModel(Checkpoint(tiny_model), torch.float32, CPU)
    hidden = streamed.hidden_states(TOKENS, directory)
    (batch,) = streamed.start(TOKENS, 5, hidden.entering(0))
    for index in range(2):
        with streamed.loaded_layer(index) as layer:
            hidden.leaving(index)[batch.rows] = streamed.run(layer, index, batch, hidden)
    assert torch.equal(hidden.entering(2), last["hidden"])


def test_a_layer_holds_weights_only_while_it_runs(tiny_model):
    streamed = StreamedModel(Checkpoint(tiny_model), torch.float32, CPU)
    assert all(p.is_meta for p in streamed.layers.parameters())
    with streamed.loaded_layer(1) as layer:
        assert not any(p.is_meta for p in layer.parameters())
        assert all(p.is_meta for p in streamed.layers[0].parameters())
    assert all(p.is_meta for p in streamed.layers.parameters())


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_the_size_of_micro_batches_does_not_matter(tiny_model, layers, batch):
    for one, other in zip(layers, collect(tiny_model, documents_per_batch=batch), strict=True):
        assert one.arrays.keys() == other.arrays.keys()
        for key, values in one.arrays.items():
            if key == ("topics", "nearest"):  # its order follows rounding errors
                continue
            if key[1].startswith("sketch_"):  # and a value at the edge of a bin may cross it: two, of over a thousand
                assert np.abs(other.arrays[key].astype(np.int64) - values).sum() <= 4, key
            else:
                np.testing.assert_allclose(other.arrays[key], values, rtol=1e-5, atol=1e-5, err_msg=str(key))


def test_fewer_documents_are_a_prefix(tiny_model, layers):
    for one, other in zip(layers, collect(tiny_model, tokens=TOKENS[:2]), strict=True):
        for tap in PROFILES["full"].taps:
            for statistic in ("sum", "sum_abs", "sum_sq", "max_abs"):
                assert np.array_equal(other.arrays[tap, statistic], one.arrays[tap, statistic][:2])


def test_weight_sums_are_those_of_rows_and_columns(tiny_model, layers):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    weight = model.model.layers[1].mlp.up_proj.weight.detach().double().numpy()  # (40, 24)
    sums = {key.rpartition(".")[2]: values for key, values in layers[1].weights.items() if "up_proj" in key}
    np.testing.assert_allclose(sums["row_sum_abs"], np.abs(weight).sum(1), rtol=1e-6)
    np.testing.assert_allclose(sums["row_sum_sq"], (weight**2).sum(1), rtol=1e-6)
    np.testing.assert_allclose(sums["row_max_abs"], np.abs(weight).max(1), rtol=1e-6)
    np.testing.assert_allclose(sums["column_sum_abs"], np.abs(weight).sum(0), rtol=1e-6)
    np.testing.assert_allclose(sums["column_sum_sq"], (weight**2).sum(0), rtol=1e-6)
    np.testing.assert_allclose(sums["column_max_abs"], np.abs(weight).max(0), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (5, 31), (4, 33), (3, 512), (2, 545), (2, 1100), (1100, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("reduce", [weight_sums._compiled, weight_sums._plain])
def test_weight_sums_at_the_edges_of_strips_and_types(shape, dtype, transposed, reduce):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(7)).mul(3).to(dtype)
    weight[-1, -1] = -50.0  # the largest is the last, and negative
    rows, columns = reduce(weight.T.contiguous().T if transposed else weight)
    wide = np.abs(weight.double().numpy())
    for found, axis in ((rows, 1), (columns, 0)):
        expected = wide.sum(axis), (wide**2).sum(axis), wide.max(axis)
        for values, name in zip(found, expected, strict=True):
            np.testing.assert_allclose(values.numpy(), name, rtol=1e-6)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_single_weight_that_is_not_finite_is_found(value, dtype):
    weight = torch.ones(7, 5, dtype=dtype)
    require_finite("w", weight)
    weight[3, 2] = value
    with pytest.raises(NotFiniteError, match="w: 1 of 35 weights are NaN or infinite"):
        require_finite("w", weight)


def test_nan_weights_are_named(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3, 5] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(NotFiniteError, match=r"model\.layers\.1\.self_attn\.k_proj\.weight: 1 of 384 weights are NaN"):
        collect(tmp_path)


def test_activations_that_overflow_are_named(tiny_model, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(1e38)
    model.save_pretrained(tmp_path)
    with pytest.raises(NotFiniteError, match=r"layer 0: sum of tap 'mlp_mid' is NaN or infinite in \d+ of 40"):
        collect(tmp_path)


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(UnknownName, match=r"architecture 'bert': not supported; supported: .*, llama, "):
        layout_of("bert")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_collects_what_a_cpu_does(tiny_model, layers):
    for one, other in zip(layers, collect(tiny_model, device=torch.device("cuda")), strict=True):
        for tap in PROFILES["full"].taps:
            for statistic in ("sum", "sum_abs", "sum_sq", "max_abs"):
                expected = one.arrays[tap, statistic]
                np.testing.assert_allclose(other.arrays[tap, statistic], expected, rtol=1e-4, atol=1e-5)


def test_gram_matrices_on_request_are_sums_of_products(tiny_model, caught):
    for layer in collect(tiny_model, gram=True):
        found = {tap for tap, name in layer.arrays if name == "gram"}
        assert found == {"attn_in", "attn_ctx", "mlp_in", "mlp_mid"}
        for tap in found:
            x = caught[layer.index, tap].reshape(-1, caught[layer.index, tap].shape[-1])
            np.testing.assert_allclose(layer.arrays[tap, "gram"], x.T @ x, rtol=1e-4, atol=1e-4 * (x**2).sum())


def test_gram_matrices_give_the_output_error_of_a_mask(tiny_model, caught):
    (layer, *_) = collect(tiny_model, gram=True)
    weight = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).model.layers[0].mlp.up_proj.weight
    removed = weight.detach().numpy() * (np.arange(24) % 3 == 0)
    x = caught[0, "mlp_in"].reshape(-1, 24)
    error = np.square(x @ removed.T).sum()
    assert np.trace(removed @ layer.arrays["mlp_in", "gram"] @ removed.T) == pytest.approx(error, rel=1e-4)


def test_classes_are_the_most_frequent_tokens_with_ties_to_the_lower_id():
    tokens = torch.tensor([[5, 5, 9, 3], [9, 3, 5, 7]])
    classes = find_classes(tokens, params(classes=3))
    assert classes.token_ids.tolist() == [5, 3, 9]
    assert classes.count.tolist() == [3, 2, 2, 1]
    assert classes.of_token.tolist() == [[0, 0, 2, 1], [2, 1, 0, 3]]


def test_lean_keeps_no_classes_topics_or_sketches(tiny_model):
    for layer in collect(tiny_model, profile="lean"):
        names = {name for _, name in layer.arrays}
        assert names == {"sum", "sum_abs", "sum_sq", "n_positive", "n_above_floor"}
