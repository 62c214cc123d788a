"""Sequential propagation against the published procedure in plain PyTorch: prune a layer, run on, look at the next."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from neuronrank.checkpoint import open_model
from neuronrank.collecting import Setup, collect_statistics
from neuronrank.collection import CollectParams
from neuronrank.errors import MismatchError, ParamsError
from neuronrank.fetching import fetch_model
from neuronrank.mask_store import MaskFile
from neuronrank.masking import make_masks
from neuronrank.patterns import read_pattern
from neuronrank.recipes import read_recipe
from neuronrank.scores import compute_factors, score_header
from neuronrank.sequential import sequential
from neuronrank.statistics_store import Statistics
from neuronrank.streaming import StreamedModel
from neuronrank.windows import Windows
from tests.test_resuming import files_of

N_DOCUMENTS, N_TOKENS = 6, 16
OPTIONS = {
    "dtype": "float32",
    "documents_per_batch": 4,
    "profile": "full",
    "classes": 4,
    "topics": {"micro_topics": 3, "iterations": 4, "seed": 0},
}
HALF = {"rule": "unstructured", "sparsity": 0.5}


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    fetched = tmp_path_factory.mktemp("fetched") / "model"
    fetch_model({"source": "path", "path": str(tiny_model)}, fetched)
    return open_model(fetched)


@pytest.fixture(scope="module")
def token_ids() -> torch.Tensor:
    return torch.randint(0, 64, (N_DOCUMENTS, N_TOKENS), generator=torch.Generator().manual_seed(5))


def recipe_of(method: str, **params):
    part = {"method": method, **params}
    return read_recipe(
        {"attention": {"method": "wanda"} if method == "neuronrank_old" else part, "mlp": part}, "recipe"
    )


def collected(model, token_ids, out, method: str, pattern: dict) -> Statistics:
    windows = Windows(token_ids.int().numpy(), {"seed": 0, "source": {}, "origins": []})
    propagation = sequential(model, recipe_of(method), read_pattern(pattern, "pattern"))
    collect_statistics(model, windows, CollectParams.model_validate(OPTIONS), out, Setup(propagation=propagation))
    return Statistics(out)


def pruned(model, statistics: Statistics, method: str, pattern: dict, out) -> MaskFile:
    recipe = recipe_of(method)
    header = score_header(statistics.manifest, "mine", recipe)
    make_masks(model, compute_factors(statistics, recipe), header, read_pattern(pattern, "pattern"), "mine", out)
    return MaskFile(out)


def published(directory, token_ids: torch.Tensor, keep_of) -> dict[str, np.ndarray]:
    """Return the mask of every linear module: layer after layer, in the model whose earlier layers are pruned.

    Args:
        directory: of the model.
        token_ids: (N, T).
        keep_of: (|W|, norm of every input channel) -> mask.
    """
    network = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    masks = {}
    for index, layer in enumerate(network.model.layers):
        linears = {name: m for name, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
        seen: dict[str, torch.Tensor] = {}
        handles = [
            linear.register_forward_pre_hook(
                lambda _m, inputs, name=name, seen=seen: seen.update({name: inputs[0].double()})
            )
            for name, linear in linears.items()
        ]
        with torch.no_grad():
            network(token_ids, use_cache=False)
        for handle in handles:
            handle.remove()
        for name, linear in linears.items():
            norm = seen[name].square().sum((0, 1)).sqrt().float()
            keep = keep_of(linear.weight.detach().abs(), norm)
            linear.weight.data *= keep
            masks[f"model.layers.{index}.{name}.weight"] = keep.numpy()
    return masks


def half_of_each_row(weight: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    order = (weight * norm).sort(dim=-1, stable=True).indices
    return torch.ones_like(weight, dtype=torch.bool).scatter(1, order[:, : weight.shape[1] // 2], False)


def two_of_four(weight: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    scores = (weight * norm).reshape(-1, 4)
    order = scores.sort(dim=-1, stable=True).indices
    return torch.ones_like(scores, dtype=torch.bool).scatter(1, order[:, :2], False).reshape(weight.shape)


@pytest.mark.parametrize(
    ("pattern", "keep_of"),
    [(HALF, half_of_each_row), ({"rule": "n_of_m", "keep_n": 2, "group_m": 4}, two_of_four)],
    ids=["half of each row", "2:4"],
)
def test_sequential_wanda_is_the_published_procedure_bit_for_bit(
    model, tiny_model, token_ids, tmp_path, pattern, keep_of
):
    statistics = collected(model, token_ids, tmp_path / "statistics", "wanda", pattern)
    mask = pruned(model, statistics, "wanda", pattern, tmp_path / "mask")
    expected = published(tiny_model, token_ids, keep_of)
    assert set(mask.weights) == expected.keys()
    for name, keep in expected.items():
        np.testing.assert_array_equal(mask.keep(name), keep, err_msg=name)


def test_only_the_first_layer_has_the_masks_of_dense_statistics(model, token_ids, tmp_path):
    windows = Windows(token_ids.int().numpy(), {"seed": 0, "source": {}, "origins": []})
    collect_statistics(model, windows, CollectParams.model_validate(OPTIONS), tmp_path / "dense")
    dense = pruned(model, Statistics(tmp_path / "dense"), "wanda", HALF, tmp_path / "dense mask")
    statistics = collected(model, token_ids, tmp_path / "sequential", "wanda", HALF)
    mask = pruned(model, statistics, "wanda", HALF, tmp_path / "mask")
    differing = {name for name in mask.weights if not np.array_equal(mask.keep(name), dense.keep(name))}
    assert differing
    assert all(".layers.1." in name for name in differing)


def test_layers_that_the_pattern_leaves_out_run_on_dense(model, token_ids, tmp_path):
    last = {**HALF, "attention": False, "pruning_last": 1}
    statistics = collected(model, token_ids, tmp_path / "statistics", "wanda", last)
    windows = Windows(token_ids.int().numpy(), {"seed": 0, "source": {}, "origins": []})
    collect_statistics(model, windows, CollectParams.model_validate(OPTIONS), tmp_path / "dense")
    dense = Statistics(tmp_path / "dense")
    for layer in range(2):
        for tap in ("attn_in", "neuron", "mlp_mid"):
            found = statistics.tap(layer, tap, None).documents("sum_sq")
            np.testing.assert_array_equal(found, dense.tap(layer, tap, None).documents("sum_sq"))


@pytest.mark.parametrize("method", ["neuronrank_tfidf", "wanda_select", "neuronrank_old"])
def test_other_methods_run_on_through_what_their_masks_leave(model, tiny_model, token_ids, tmp_path, method):
    """The inputs of layer 1 are those of a model whose layer 0 is pruned by the mask that prune makes."""
    statistics = collected(model, token_ids, tmp_path / "statistics", method, HALF)
    mask = pruned(model, statistics, method, HALF, tmp_path / "mask")
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    seen = []
    with torch.no_grad():
        for name, parameter in network.model.layers[0].named_parameters():
            if f"model.layers.0.{name}" in mask.weights:
                parameter *= torch.from_numpy(mask.keep(f"model.layers.0.{name}"))
        network.model.layers[1].self_attn.q_proj.register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
        network(token_ids, use_cache=False)
    expected = seen[0].double().square().sum((0, 1))
    np.testing.assert_allclose(statistics.tap(1, "attn_in", None).total("sum_sq"), expected, rtol=1e-4)


def test_such_statistics_serve_no_other_recipe_or_pattern(model, token_ids, tmp_path):
    statistics = collected(model, token_ids, tmp_path / "statistics", "wanda", HALF)
    with pytest.raises(MismatchError, match=r"pruned by another recipe \(attention: wanda, mlp: wanda\)"):
        compute_factors(statistics, recipe_of("wanda", activation_exp=0.5))
    with pytest.raises(MismatchError, match="layers pruned with another pattern"):
        pruned(model, statistics, "wanda", {**HALF, "sparsity": 0.6}, tmp_path / "mask")


@pytest.mark.parametrize(
    ("pattern", "why"),
    [({**HALF, "group": "global"}, "compares the weights of all layers"), ({**HALF, "lm_head": True}, "is no layer")],
)
def test_what_needs_all_layers_at_once_is_refused(model, pattern, why):
    with pytest.raises(ParamsError, match=f"propagation sequential: .*{why}"):
        sequential(model, recipe_of("wanda"), read_pattern(pattern, "pattern"))


@pytest.mark.parametrize("call", [3, 5, 6])  # of 8: while layer 0 runs on, while layer 1 is counted, and runs on
def test_an_interrupted_run_goes_on_to_the_same_bytes(model, token_ids, tmp_path, monkeypatch, call):
    whole = files_of(collected(model, token_ids, tmp_path / "whole", "wanda", HALF).directory)
    run, calls = StreamedModel.run, []

    def fail_once(self, *arguments):
        calls.append(arguments[1])
        if len(calls) == call + 1:
            raise RuntimeError("stop")
        return run(self, *arguments)

    monkeypatch.setattr(StreamedModel, "run", fail_once)
    with pytest.raises(RuntimeError, match="stop"):
        collected(model, token_ids, tmp_path / "interrupted", "wanda", HALF)
    collected(model, token_ids, tmp_path / "interrupted", "wanda", HALF)
    assert len(calls) == 8 + call + 1 - (4 if call >= 4 else 0), "a complete layer is not run again"
    assert files_of(tmp_path / "interrupted") == whole
