"""Masks of a whole model: element scores, pools, whole neurons, the output head, and what is reported of them."""

import json
import logging
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from neuronrank.cli import main
from neuronrank.element_scores import neuron_scores, weight_scores
from neuronrank.errors import DegenerateError, MismatchError, NotFiniteError, ParamsError
from neuronrank.evaluation import load_model
from neuronrank.masks import unstructured
from neuronrank.output_head import find_output_head
from neuronrank.patterns import read_pattern
from neuronrank.pruning import iter_masks, modules_with_idle_factor, unscored_lines
from neuronrank.realised import module_line, part_counts, realised_sparsity, require_share, summary_lines
from tests import naive
from tests.project import tiny_params
from tests.pruned import PLAIN, Pruner, header_of, make_model

HALF = {"rule": "unstructured", "sparsity": 0.5}
NEURONS = {"rule": "structured", "sparsity": 0.45}  # floor(0.45 * 40) = 18 of 40 neurons go


def vector(*values):
    return np.array(values, dtype=np.float32)


@pytest.fixture(scope="module")
def tied(tiny_model, tmp_path_factory) -> Pruner:
    model = make_model(tmp_path_factory.mktemp("tied"), tiny_model)
    return Pruner(model, {}, header_of(model))


@pytest.fixture(scope="module")
def own_head(tiny_model, tmp_path_factory) -> Pruner:
    """An untied head, biases in the MLP, one file."""
    directory = tmp_path_factory.mktemp("own")
    model = make_model(directory, tiny_model, shard="1GB", tie_word_embeddings=False, mlp_bias=True)
    return Pruner(model, {}, header_of(model))


def with_neurons(pruner: Pruner) -> Pruner:
    rng = np.random.default_rng(5)
    neurons = {f"neurons.{layer}": np.float32(rng.integers(0, 12, size=40)) for layer in (0, 1)}  # many ties
    return Pruner(pruner.model, neurons, pruner.header)


# Element scores. W is 2 x 3, so that rows and columns cannot be confused.
WEIGHT = torch.tensor([[1.0, -2, 3], [-4, 5, -6]])


def test_a_score_is_a_product_and_two_terms():
    factors = {
        "m.row": vector(2, 3),
        "m.column": vector(1, 10, 100),
        "m.row_term": vector(1000, 2000),
        "m.column_term": vector(7, 8, 9),
    }
    part = {"weight_exp": 2.0, "weight_multi": 0.5, "elements": True}
    # 0.5 * [[1, 4, 9], [16, 25, 36]] * rows * columns = [[1, 40, 900], [24, 375, 5400]]
    expected = [[1008, 1048, 1909], [2031, 2383, 7409]]
    assert weight_scores("m", WEIGHT, factors, part, "row").tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("weight_exp", [1.0, 0.7])
def test_scores_are_rounded_to_float32_at_every_step(dtype, weight_exp):
    rng = np.random.default_rng(3)
    stored = torch.from_numpy(rng.normal(size=(5, 37))).to(dtype)
    row, row_term, column, column_term = (np.float32(rng.random(size)) for size in (37, 37, 5, 5))
    factors = {"m.row": row, "m.column": column, "m.row_term": row_term, "m.column_term": column_term}
    part = {"weight_exp": weight_exp, "weight_multi": 0.3, "elements": True}
    found = weight_scores("m", stored.T, factors, part, "row")  # a module may be a transposed view
    powers = (stored.T.float().abs() ** weight_exp).numpy()
    for i, j in np.ndindex(37, 5):
        score = powers[i, j] * np.float32(0.3)
        for factor in (row[i], column[j]):
            score = np.float32(score * factor)
        for term in (row_term[i], column_term[j]):
            score = np.float32(score + term)
        assert found[i, j] == score, (i, j)


def test_a_negative_factor_of_zeros_gives_no_negative_zero():
    weight = torch.tensor([[0.0, 0, 0], [-4, 5, -6]])
    part = {"weight_exp": 1.0, "weight_multi": 1.0, "elements": True}
    scores = weight_scores("m", weight, {"m.row": vector(-2, 1)}, part, "module")
    assert scores.tolist() == [[0, 0, 0], [4, 5, 6]]
    assert not np.signbit(scores).any()


def test_a_term_alone_ranks_where_it_varies():
    part = {"weight_exp": 1.0, "weight_multi": 0.0, "elements": True}
    columns = {"m.column_term": vector(3, 1, 2)}
    assert weight_scores("m", WEIGHT, columns, part, "row").tolist() == [[3, 1, 2], [3, 1, 2]]
    rows = {"m.row_term": vector(3, 1)}
    assert weight_scores("m", WEIGHT, rows, part, "module").tolist() == [[3, 3, 3], [1, 1, 1]]
    with pytest.raises(DegenerateError, match="the score is the same all along a row"):
        weight_scores("m", WEIGHT, rows, part, "row")


def test_bad_terms_are_refused():
    part = {"weight_exp": 1.0, "weight_multi": 1.0, "elements": True}
    with pytest.raises(NotFiniteError, match="m: 1 of 6 scores are negative"):
        weight_scores("m", WEIGHT, {"m.column_term": vector(-2, 0, 0)}, part, "row")
    with pytest.raises(MismatchError, match=r"m: weight is \(2, 3\), a factor has 3 channels"):
        weight_scores("m", WEIGHT, {"m.row_term": vector(1, 2, 3)}, part, "row")


def test_a_negative_zero_does_not_outrank_everything():
    scores = weight_scores(
        "m", WEIGHT, {"m.row": vector(-0.0, 1)}, {"weight_exp": 1.0, "weight_multi": 1.0, "elements": True}, "module"
    )
    assert not np.signbit(scores).any()


def test_neuron_scores_are_refused_by_name():
    part = {"method": "wanda", **PLAIN}
    with pytest.raises(ParamsError, match=r"method 'wanda' has no neuron score.*run `neuronrank methods`"):
        neuron_scores("1", 3, {}, part)
    with pytest.raises(MismatchError, match=r"neurons\.1: holds 2 scores, the MLP has 3 neurons"):
        neuron_scores("1", 3, {"neurons.1": vector(1, 2)}, part)
    with pytest.raises(DegenerateError, match=r"neurons\.1: all 3 scores are equal"):
        neuron_scores("1", 3, {"neurons.1": vector(2, 2, 2)}, part)
    with pytest.raises(NotFiniteError, match=r"neurons\.1: 1 of 3 scores are NaN"):
        neuron_scores("1", 3, {"neurons.1": vector(2, np.inf, 2)}, part)


# Pools


def naive_pool(masks, scores: dict[str, np.ndarray], sparsity: float) -> None:
    """Assert that masks are the head of one stable sort over all modules, in this order."""
    flat = np.concatenate([scores[mask.entry["name"]].reshape(-1) for mask in masks])
    removed = np.zeros(flat.size, dtype=bool)
    removed[np.argsort(flat, kind="stable")[: int(sparsity * flat.size + 1e-9)]] = True
    found = np.concatenate([~mask.keep.reshape(-1) for mask in masks])
    np.testing.assert_array_equal(found, removed)


def test_a_global_pool_is_one_stable_sort_over_the_model(tied):
    dead = {"model.layers.0.mlp.down_proj.row": vector(*[0] * 20, *[1] * 4)}  # ties at zero, in two modules
    dead |= {"model.layers.1.self_attn.q_proj.row": vector(*[0] * 28, *[1] * 4)}
    pruner = Pruner(tied.model, dead, tied.header)
    scores = {module["name"]: pruner.weight(module["name"]) for module in tied.header["modules"]}
    scores = {name: score * dead.get(f"{name}.row", np.ones(1))[:, None] for name, score in scores.items()}
    for sparsity in (0.03, 0.5):  # 0.03: the threshold lies within the zeros
        masks = pruner.masks(rule="unstructured", sparsity=sparsity, group="global")
        assert [mask.entry["name"] for mask in masks] == [module["name"] for module in tied.header["modules"]]
        naive_pool(masks, scores, sparsity)


def test_a_layer_pool_is_one_stable_sort_over_the_layer(tied):
    masks = tied.masks(**HALF, group="layer")
    for layer in (0, 1):
        mine = [mask for mask in masks if mask.entry["layer"] == layer]
        assert len(mine) == 7
        naive_pool(mine, {mask.entry["name"]: tied.weight(mask.entry["name"]) for mask in mine}, 0.5)


def different(**changes):
    return {"attention": {"method": "magnitude", **PLAIN}, "mlp": {"method": "magnitude", **PLAIN, **changes}}


@pytest.mark.parametrize(
    ("parts", "sparsity"),
    [
        (different(method="other"), 0.5),
        (different(weight_exp=2.0), 0.5),
        (different(params={"knob": 1}), 0.5),
        (different(), {"attention": 0.25, "mlp": 0.5}),
    ],
)
def test_scores_that_cannot_be_compared_are_pools_of_their_own(tied, parts, sparsity):
    pruner = Pruner(tied.model, {}, {**tied.header, "parts": parts})
    masks = pruner.masks(rule="unstructured", sparsity=sparsity, group="global")
    for part in ("attention", "mlp"):
        share = sparsity if isinstance(sparsity, float) else sparsity[part]
        mine = [mask for mask in masks if mask.entry["part"] == part]
        naive_pool(mine, {mask.entry["name"]: tied.weight(mask.entry["name"]) for mask in mine}, share)


@pytest.mark.parametrize(("group", "n_passes"), [("global", 3), ("row", 1)])  # a pool: two for the threshold
def test_the_scores_of_one_module_are_in_memory_at_a_time(tied, monkeypatch, group, n_passes):
    made: list[weakref.ref] = []

    def counted(*arguments):
        alive = sum(one() is not None for one in made)
        assert alive <= 1, alive  # the one before may live until it is replaced
        scores = weight_scores(*arguments)
        made.append(weakref.ref(scores))
        return scores

    monkeypatch.setattr("neuronrank.pruning.weight_scores", counted)
    n_removed = sum(mask.n_removed for mask in tied.masks(**HALF, group=group))
    assert n_removed == sum(np.prod(module["shape"]) for module in tied.header["modules"]) // 2
    assert len(made) == n_passes * 14


def test_a_fault_comes_in_its_turn_although_weights_are_read_ahead(tied):
    names = [module["name"] for module in tied.header["modules"]]
    changed = {f"{names[1]}.weight": {**tied.model.tensors[f"{names[1]}.weight"], "sha256": "0" * 64}}
    model = replace(tied.model, description={**tied.model.description, "tensors": {**tied.model.tensors, **changed}})
    masks = iter_masks(model, {}, tied.header, read_pattern(HALF, "p"))
    assert next(masks).entry["name"] == names[0]
    with pytest.raises(MismatchError, match=rf"{names[1]}\.weight: sha256 is .*, model\.json says 000000000000"):
        next(masks)


# Whole neurons


def test_structured_masks_are_rows_and_columns_of_the_same_neurons(tied):
    pruner = with_neurons(tied)
    masks = {mask.entry["name"]: mask for mask in pruner.masks(**NEURONS)}
    assert len(masks) == 6
    for layer in (0, 1):
        gone = sorted(range(40), key=pruner.factors[f"neurons.{layer}"].__getitem__)[:18]
        expected = np.ones(40, dtype=bool)
        expected[gone] = False
        for name, shape in (("gate", (40, 24)), ("up", (40, 24)), ("down", (24, 40))):
            mask = masks[f"model.layers.{layer}.mlp.{name}_proj"]
            assert mask.keep.shape == shape
            assert mask.n_removed == 18 * 24
            lines = mask.keep if name != "down" else mask.keep.T
            np.testing.assert_array_equal(lines, np.repeat(expected[:, None], 24, axis=1))


def test_structured_needs_neuron_scores(tied):
    with pytest.raises(ParamsError, match="method 'magnitude' has no neuron score"):
        tied.masks(**NEURONS)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(48).reshape(3, 16)).logits


def base_of(pruner: Pruner):
    return AutoModelForCausalLM.from_pretrained(pruner.model.weights_directory, dtype=torch.float32).eval()


def masked(pruner: Pruner, mask):
    return load_model(pruner.model, torch.float32, torch.device("cpu"), mask)


def export(pruner: Pruner, mask, out, *options):
    command = ["export", "--model", str(pruner.model.directory), "--mask", str(mask.path), "--out", str(out)]
    return CliRunner().invoke(main, [*command, *options])


@pytest.mark.parametrize("which", ["tied", "own_head"])  # several shards without biases; one file with them
def test_a_compact_export_computes_what_the_zeroed_model_does(which, request, tmp_path):
    pruner = with_neurons(request.getfixturevalue(which))
    mask = pruner.file(tmp_path / "mask.safetensors", **NEURONS)
    done = export(pruner, mask, tmp_path / "small", "--compact")
    assert done.exit_code == 0, done.output
    assert "22 of 40 neurons left in every layer" in done.output
    zeroed = masked(pruner, mask)
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32).eval()
    assert small.config.intermediate_size == 22
    assert small.model.layers[1].mlp.down_proj.weight.shape == (24, 22)
    torch.testing.assert_close(logits(small), logits(zeroed), rtol=1e-5, atol=1e-5)
    assert (logits(base_of(pruner)) - logits(small)).abs().max() > 0.1  # the neurons did something
    assert export(pruner, mask, tmp_path / "full").exit_code == 0
    sizes = [sum(p.stat().st_size for p in (tmp_path / d).glob("*.safetensors")) for d in ("small", "full")]
    assert sizes[1] - sizes[0] >= 2 * 18 * 3 * 24 * 4
    found = {name: t for p in (tmp_path / "small").glob("*.safetensors") for name, t in load_file(p).items()}
    index = tmp_path / "small/model.safetensors.index.json"
    if index.exists():
        stated = json.loads(index.read_text())
        assert stated["weight_map"].keys() == found.keys()
        assert stated["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    base = {n: t for p in pruner.model.weights_directory.glob("*.safetensors") for n, t in load_file(p).items()}
    assert base.keys() == found.keys()
    assert all(torch.equal(found[name], base[name]) for name in base if "mlp" not in name or "down_proj.bias" in name)


def test_other_masks_cannot_be_compact(own_head, tmp_path):
    mask = own_head.file(tmp_path / "half.safetensors", **HALF)
    refused = export(own_head, mask, tmp_path / "out", "--compact")
    assert refused.exit_code == 1
    assert "made by rule 'unstructured', which leaves scattered zeros" in refused.output
    pruner = with_neurons(own_head)
    last = pruner.file(tmp_path / "last.safetensors", **NEURONS, pruning_last=1)
    refused = export(pruner, last, tmp_path / "out", "--compact")
    assert "removes neurons from 1 of 2 layers" in refused.output
    assert not (tmp_path / "out").exists()


# The output head


def test_an_own_head_is_pruned_by_magnitude_whatever_the_recipe(own_head):
    parts = {"mlp": {"method": "wanda", **PLAIN, "default_group": "row", "weight_exp": 2.0}}
    factors = {"lm_head.column": np.arange(1, 25, dtype=np.float32)}  # must not be used
    pruner = Pruner(own_head.model, factors, {**own_head.header, "parts": parts})
    *others, head = pruner.masks(**HALF, lm_head=True)
    assert {mask.entry["part"] for mask in others} == {"mlp"}
    described = [head.entry[key] for key in ("name", "weight", "part", "layer")]
    assert described == ["lm_head", "lm_head.weight", "lm_head", None]
    np.testing.assert_array_equal(head.keep, naive.mask(own_head.weight("lm_head"), 0.5, "module"))


def test_the_head_never_joins_a_pool_and_follows_the_rule(own_head):
    weight = own_head.weight("lm_head")
    alone = {"attention": False, "mlp": False, "lm_head": True}
    (head,) = own_head.masks(**HALF, group="global", **alone)
    np.testing.assert_array_equal(head.keep, naive.mask(weight, 0.5, "module"))
    with_all = own_head.masks(**HALF, group="global", lm_head=True)
    without = own_head.masks(**HALF, group="global")
    for one, other in zip(with_all, without, strict=False):
        np.testing.assert_array_equal(one.keep, other.keep)
    (head,) = own_head.masks(rule="n_of_m", keep_n=1, group_m=4, **alone)
    np.testing.assert_array_equal(head.keep.reshape(64, 6, 4).sum(axis=2), np.ones((64, 6)))
    (head,) = own_head.masks(rule="wanda_variant", sparsity=0.3, **alone)
    assert head.n_removed == pytest.approx(0.3 * weight.size, abs=0.001 * weight.size + 1)
    assert len(set(head.keep.sum(axis=1).tolist())) > 1


def test_a_tied_head_is_refused_before_anything_is_done(tied):
    with pytest.raises(MismatchError, match=r"lm_head: tied to model\.embed_tokens\.weight .*untie_lm_head: true"):
        tied.masks(**HALF, lm_head=True)


def test_an_untied_copy_is_pruned_and_the_embeddings_stay(tied, tmp_path):
    mask = tied.file(tmp_path / "mask.safetensors", **HALF, lm_head=True, untie_lm_head=True)
    assert mask.untied == {"lm_head.weight": "model.embed_tokens.weight"}
    embeddings = tied.model.checkpoint().tensor("model.embed_tokens.weight")
    keep = naive.mask(embeddings.abs().numpy(), 0.5, "module")
    np.testing.assert_array_equal(mask.keep("lm_head.weight"), keep)
    evaluated = masked(tied, mask)
    assert torch.equal(evaluated.model.embed_tokens.weight, embeddings)
    assert torch.equal(evaluated.lm_head.weight, embeddings * torch.from_numpy(keep))
    assert evaluated.config.tie_word_embeddings is False
    done = export(tied, mask, tmp_path / "shards")
    assert done.exit_code == 0, done.output
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "shards", dtype=torch.float32).eval()
    assert exported.config.tie_word_embeddings is False
    assert torch.equal(exported.model.embed_tokens.weight, embeddings)
    assert torch.equal(exported.lm_head.weight, evaluated.lm_head.weight)
    torch.testing.assert_close(logits(exported), logits(evaluated), rtol=0, atol=0)
    index = json.loads((tmp_path / "shards/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert index["weight_map"]["lm_head.weight"] == files[-1]
    assert index["weight_map"].keys() == {*tied.model.tensors, "lm_head.weight"}


def test_a_single_file_becomes_two_when_the_head_is_untied(tiny_model, tmp_path):
    model = make_model(tmp_path / "base", tiny_model, shard="1GB")
    pruner = Pruner(model, {}, header_of(model))
    head_only = {"attention": False, "mlp": False, "lm_head": True, "untie_lm_head": True}
    mask = pruner.file(tmp_path / "mask.safetensors", **HALF, **head_only)
    assert export(pruner, mask, tmp_path / "out").exit_code == 0
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (tmp_path / "any").touch()
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {(tmp_path / "any").stat().st_mode}
    base = (tmp_path / "base/model.safetensors").read_bytes()
    assert (tmp_path / "out" / names[0]).read_bytes() == base  # the embeddings among it, byte for byte
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert (exported.lm_head.weight == 0).sum() == 64 * 24 // 2
    assert (exported.model.embed_tokens.weight == 0).sum() == 0


def test_untying_what_is_not_tied_changes_nothing(own_head):
    mask = own_head.masks(**HALF, attention=False, mlp=False, lm_head=True, untie_lm_head=True)[0]
    np.testing.assert_array_equal(mask.keep, naive.mask(own_head.weight("lm_head"), 0.5, "module"))


def test_a_tied_head_that_is_stored_as_well_must_be_the_embeddings(tied):
    tensors = tied.model.tensors
    embeddings = tensors["model.embed_tokens.weight"]
    names = {**tied.header["lm_head"], "weight": "lm_head.weight"}

    def stored(entry):
        return replace(tied.model, description={**tied.model.description, "tensors": {**tensors, **entry}})

    same = find_output_head(stored({"lm_head.weight": embeddings}), names, untie=True)
    assert same.untied == {"lm_head.weight": "model.embed_tokens.weight"}
    with pytest.raises(MismatchError, match="stored with different values"):
        find_output_head(stored({"lm_head.weight": {**embeddings, "sha256": "0"}}), names, untie=True)
    with pytest.raises(MismatchError, match="tie_word_embeddings"):
        find_output_head(stored({"lm_head.weight": embeddings}), names, untie=False)


def test_a_checkpoint_without_a_head_counts_as_tied(tied):
    names = {**tied.header["lm_head"], "tied": False}
    assert names["weight"] is None
    with pytest.raises(MismatchError, match="the checkpoint has none of its own"):
        find_output_head(tied.model, names, untie=False)


def test_scores_that_name_no_head_are_refused(own_head):
    pruner = Pruner(own_head.model, {}, {**own_head.header, "lm_head": None})
    with pytest.raises(MismatchError, match="name no output head"):
        pruner.masks(**HALF, lm_head=True)


# Parts, reports, the final check


def test_a_part_without_a_method_is_left_dense_and_named(tied):
    pruner = Pruner(tied.model, {}, {**tied.header, "parts": {"mlp": {"method": "magnitude", **PLAIN}}})
    assert {mask.entry["part"] for mask in pruner.masks(**HALF)} == {"mlp"}
    pattern = read_pattern(HALF, "p")
    assert unscored_lines(pruner.header, pattern) == ["attention: not scored by recipe 'mine', left dense"]
    assert unscored_lines(tied.header, pattern) == []
    with pytest.raises(ParamsError, match="recipe 'mine' scores mlp, the pattern prunes attention"):
        pruner.masks(**HALF, mlp=False)


def test_lines_and_counts():
    entries = [
        {"name": "model.layers.10.self_attn.q_proj", "part": "attention", "layer": 10, "shape": [2, 3], "n_removed": 2},
        {"name": "model.layers.10.mlp.up_proj", "part": "mlp", "layer": 10, "shape": [5, 3], "n_removed": 9},
        {"name": "model.layers.11.mlp.up_proj", "part": "mlp", "layer": 11, "shape": [5, 3], "n_removed": 6},
        {"name": "lm_head", "part": "lm_head", "layer": None, "shape": [4, 2], "n_removed": 1},
    ]
    assert [module_line(entry) for entry in entries[::3]] == [
        "layer 10 self_attn.q_proj: pruned 2/6",
        "lm_head: pruned 1/8",
    ]
    assert part_counts(entries)["mlp"] == {"removed": 15, "weights": 30}
    assert summary_lines(entries) == [
        "attention: pruned 2/6 (33.33 %)",
        "mlp: pruned 15/30 (50.00 %)",
        "lm_head: pruned 1/8 (12.50 %)",
        "total: pruned 18/44 (40.91 %)",
    ]
    header = {"modules": [*entries[:3], {"shape": [7, 2]}]}
    assert realised_sparsity(entries, header, 100) == {"selected": 18 / 44, "linears": 17 / 50, "model": 0.18}


def test_a_result_that_misses_its_request_is_refused(tied, monkeypatch):
    require_share("m", 3, 7, 0.5, 1)
    require_share("m", 2, 7, 0.29, 1)
    with pytest.raises(MismatchError, match=r"m: 2 of 7 are removed, sparsity 0\.5 asks for 3\.5, within 1"):
        require_share("m", 2, 7, 0.5, 1)
    monkeypatch.setattr(unstructured, "keep", lambda scores, *_: np.ones(scores.shape, dtype=bool))
    with pytest.raises(MismatchError, match=r"q_proj: 0 of 768 are removed, sparsity 0\.5 asks for 384\.0"):
        tied.masks(**HALF)


def test_idle_factors_are_counted_only_where_no_column_helps(tied):
    name = "model.layers.0.mlp.up_proj"
    row, column = {f"{name}.row": np.ones(40, np.float32)}, {f"{name}.column_term": np.ones(24, np.float32)}
    by_row = read_pattern({**HALF, "group": "row"}, "p")
    assert modules_with_idle_factor(row, tied.header, by_row) == 1
    assert modules_with_idle_factor({**row, **column}, tied.header, by_row) == 0
    assert modules_with_idle_factor(row, tied.header, read_pattern({**HALF, "group": "layer"}, "p")) == 0


def test_the_stages_prune_and_evaluate_an_untied_head(project, tiny_model, tiny_texts, caplog):
    params = tiny_params(tiny_model, tiny_texts)
    params["patterns"]["head"] = {**HALF, "group": "global", "lm_head": True, "untie_lm_head": True}
    project.write_params(params)
    caplog.set_level(logging.INFO, logger="neuronrank")
    done = project.prune("wanda", "head")
    assert done.exit_code == 0, done.output
    linears, n_head = 2 * (3 * 24 * 40 + 24 * 32 * 2 + 24 * 16 * 2), 64 * 24
    measured = json.loads((project.metrics / "prune/wanda/head.json").read_text())
    assert measured["parts"]["lm_head"] == {"removed": n_head // 2, "weights": n_head}
    assert measured["removed"] == (linears + n_head) // 2
    assert measured["sparsity"]["linears"] == 0.5
    norms = 5 * 24
    assert measured["sparsity"]["model"] == pytest.approx(measured["removed"] / (linears + 2 * n_head + norms))
    assert f"lm_head: pruned {n_head // 2}/{n_head}" in caplog.text
    assert "layer 1 self_attn.k_proj: pruned " in caplog.text
    assert f"total: pruned {measured['removed']}/{linears + n_head} (50.00 %)" in caplog.text
    done = project.eval("wanda", "head")
    assert done.exit_code == 0, done.output
