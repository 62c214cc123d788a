"""Statistics, scores and masks inside a mixture of experts: over the tokens that the router sent to each.

The reference runs the model as transformers loads it, hooks its experts and counts by hand. Expert 3 of layer 0 gets no
token at all, and the router knows only one expert per token, so that documents send very different numbers to each.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import silu
from transformers import AutoConfig, AutoModelForCausalLM

from neuronrank.checkpoint import ModelArtifact, open_model
from neuronrank.cli import main
from neuronrank.collecting import Setup, collect_statistics
from neuronrank.collection import CollectParams
from neuronrank.errors import DegenerateError, MismatchError, UnknownName
from neuronrank.fetching import fetch_model
from neuronrank.mask_store import MaskFile
from neuronrank.masking import make_masks
from neuronrank.merging_artifacts import fitted_on, merge_artifacts
from neuronrank.model_shape import Sizes, read_config
from neuronrank.patterns import read_pattern
from neuronrank.planned_arrays import planned_arrays
from neuronrank.recipes import read_recipe
from neuronrank.routing import routing_lines
from neuronrank.scores import compute_factors, score_header
from neuronrank.sequential import sequential
from neuronrank.skeleton import Skeleton
from neuronrank.statistics_store import Statistics
from neuronrank.stored_arrays import stored_arrays
from neuronrank.tap_names import expert as expert_of
from neuronrank.windows import Windows
from tests.conftest import TINY, write_tokenizer
from tests.project import Project, tiny_params
from tests.test_ranks import arrays, require_same, torchrun

N, T, E = 6, 10, 5
UNUSED = 3
OPTIONS = {
    "dtype": "float32",
    "documents_per_batch": 4,
    "profile": "full",
    "classes": 5,
    "topics": {"micro_topics": 4, "iterations": 4, "seed": 0},
    "gram": True,
}


def save(directory: Path, model_type: str = "mixtral", **changes) -> Path:
    torch.manual_seed(5)
    settings = {**TINY, "num_local_experts": E, "num_experts_per_tok": 1, **changes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
        router = model.model.layers[0].mlp.gate.weight if model_type == "mixtral" else None
        if router is not None and len(router) == E:
            router[UNUSED] = router[[0, 1, 2, 4]].mean(dim=0)  # never the largest
    model.save_pretrained(directory, max_shard_size="30KB")
    write_tokenizer(directory)
    return directory


@dataclass(frozen=True)
class Routed:
    """What one expert of one layer sees."""

    tokens: Tensor
    """(n,) of N * T, rising."""
    x: Tensor
    neuron: Tensor


@dataclass(frozen=True)
class Mixture:
    source: Path
    artifact: ModelArtifact
    token_ids: Tensor
    statistics: Statistics
    routed: dict[tuple[int, int], Routed]

    def collect(self, out: Path, first: int = 0, last: int = N, on: Path | None = None, **changes) -> Statistics:
        options = CollectParams.model_validate({**OPTIONS, **changes})
        setup = Setup(fitted_on=None if on is None else fitted_on(on, self.artifact, options))
        collect_statistics(self.artifact, windows(self.token_ids[first:last]), options, out, setup)
        return Statistics(out)


def windows(token_ids: Tensor) -> Windows:
    return Windows(token_ids.int().numpy(), {"seed": 0, "source": {}, "origins": [{"window": 0}] * len(token_ids)})


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Mixture:
    source = save(tmp_path_factory.mktemp("source"))
    fetched = tmp_path_factory.mktemp("fetched") / "model"
    fetch_model({"source": "path", "path": str(source)}, fetched)
    token_ids = torch.randint(3, 64, (N, T), generator=torch.Generator().manual_seed(1))
    out = tmp_path_factory.mktemp("artifacts") / "statistics"
    made = Mixture(source, open_model(fetched), token_ids, None, routed(source, token_ids))
    return Mixture(source, made.artifact, token_ids, made.collect(out), made.routed)


def routed(source: Path, token_ids: Tensor) -> dict[tuple[int, int], Routed]:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, experts_implementation="eager").eval()
    found = {}
    for index, layer in enumerate(model.model.layers):

        def keep(experts, arguments, index=index):
            hidden, chosen, _weights = arguments
            for expert in range(E):
                tokens = torch.nonzero((chosen == expert).any(dim=1))[:, 0]
                gate = hidden[tokens] @ experts.gate_up_proj[expert][:40].T
                found[index, expert] = Routed(tokens, hidden[tokens], silu(gate))

        layer.mlp.experts.register_forward_pre_hook(keep)
    with torch.no_grad():
        model(token_ids, use_cache=False)
    return found


def seen_experts(mixture: Mixture) -> list[tuple[int, int]]:
    return [key for key, one in mixture.routed.items() if len(one.tokens)]


def test_the_case_is_uneven(mixture):
    per_document = {key: torch.bincount(one.tokens // T, minlength=N) for key, one in mixture.routed.items()}
    assert not len(mixture.routed[0, UNUSED].tokens)
    assert any((counts == 0).any() and (counts > 1).any() for counts in per_document.values())


def test_tokens_are_counted_where_they_went(mixture):
    classes = mixture.statistics.class_token_ids()
    for (layer, expert), one in mixture.routed.items():
        document, ids = one.tokens // T, mixture.token_ids.reshape(-1)[one.tokens]
        labels = torch.from_numpy(mixture.statistics.layer_values(layer, "topics", "labels").astype(np.int64))
        topic = labels.reshape(-1)[one.tokens]
        of_class = [int((ids == token).sum()) for token in classes]
        expected = {
            "n_tokens": torch.bincount(document, minlength=N).tolist(),
            "class_count": [*of_class, len(ids) - sum(of_class)],
            "topic_count": torch.bincount(topic, minlength=4).tolist(),
        }
        for name, counts in expected.items():
            assert mixture.statistics.layer_values(layer, f"neuron.{expert}", name).tolist() == counts
        sums = mixture.statistics.layer_values(layer, f"neuron.{expert}", "topic_sum_abs")
        by_topic = [one.neuron[topic == k].abs().sum(dim=0).numpy() for k in range(4)]
        np.testing.assert_allclose(sums, np.stack(by_topic), rtol=1e-5, atol=1e-6)


def test_means_frequencies_and_variances_are_over_the_routed_tokens(mixture):
    tfidf = read_recipe(both("neuronrank_tfidf"), "r")
    variance = read_recipe(both("neuronrank_unstructured", classes=0, token_weight=2.0), "r")
    attention = read_recipe({**both("neuronrank_tfidf"), "mlp": {"method": "none"}}, "r")
    assert not any("experts" in name for name in compute_factors(mixture.statistics, attention))
    seen = Statistics(mixture.statistics.directory)
    seen.modules = [m for m in seen.modules if not m.input_tap.endswith(f".{UNUSED}") or m.layer]
    for recipe, define in ((tfidf, naive_tfidf), (variance, naive_variance)):
        factors = compute_factors(seen, recipe)
        for layer, expert in seen_experts(mixture):
            one = mixture.routed[layer, expert]
            name = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
            expected = define(one.neuron.double().numpy(), (one.tokens // T).numpy())
            for vector in (f"{name}.w1.row", f"{name}.w3.row", f"{name}.w2.column"):
                key = vector if vector in factors else f"{vector}_term"
                np.testing.assert_allclose(factors[key], expected, rtol=2e-5, err_msg=key)


def both(method: str, **params) -> dict:
    return {"attention": {"method": "none"}, "mlp": {"method": method, **params}}


def naive_tfidf(neuron: np.ndarray, document: np.ndarray) -> np.ndarray:
    """TF-IDF over the documents that sent any token, each by the mean over its own tokens."""
    means = np.stack([np.abs(neuron[document == d]).mean(axis=0) for d in np.unique(document)])
    reached = (means >= np.quantile(means, 0.6)).sum(axis=0)
    return np.abs(neuron).mean(axis=0) * (np.log((len(means) + 1) / (reached + 1)) + 1)


def naive_variance(neuron: np.ndarray, document: np.ndarray) -> np.ndarray:
    means = np.stack([neuron[document == d].mean(axis=0) for d in np.unique(document)])
    return means.var(axis=0, ddof=1) + 2 * neuron.var(axis=0)


def test_an_expert_without_tokens_is_reported_and_never_scored(mixture, caplog, tmp_path):
    with caplog.at_level(logging.INFO, logger="neuronrank"):
        mixture.collect(tmp_path / "again")
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("experts:")]
    assert told == routing_lines(mixture.statistics)
    assert told[0].startswith(f"experts: expert {UNUSED} of layer 0 saw the fewest tokens, 0;")
    n_without = sum(not len(one.tokens) for one in mixture.routed.values())
    assert f"{n_without} saw no token and cannot be scored" in told[1]
    wanda = read_recipe({"attention": {"method": "wanda"}, "mlp": {"method": "wanda"}}, "r")
    with pytest.raises(
        DegenerateError, match=rf"layer 0, expert {UNUSED}, tap 'mlp_in': the router sent no calibration"
    ):
        compute_factors(mixture.statistics, wanda)
    shown = CliRunner().invoke(main, ["inspect", str(mixture.statistics.directory), "--json"])
    found = json.loads(shown.output)["experts"]
    assert (found["per_layer"], found["without_tokens"]) == (E, n_without)
    assert found["fewest_tokens"] == {"layer": 0, "expert": UNUSED, "tokens": 0}
    in_words = CliRunner().invoke(main, ["inspect", str(mixture.statistics.directory)])
    assert in_words.exit_code == 0, in_words.output
    assert f"without_tokens: {n_without}" in in_words.output


def test_inspect_averages_over_all_routed_tokens(mixture):
    described = json.loads(CliRunner().invoke(main, ["inspect", str(mixture.statistics.directory), "--json"]).output)
    neurons = torch.cat([mixture.routed[1, expert].neuron for expert in range(E)])
    inputs = torch.cat([mixture.routed[1, expert].x for expert in range(E)])
    assert described["layers"][1]["neuron_mean_abs"] == pytest.approx(float(neurons.abs().mean()), rel=1e-5)
    assert described["layers"][1]["rms"]["mlp_in"] == pytest.approx(float(inputs.square().mean().sqrt()), rel=1e-5)


def test_two_halves_of_a_mixture_merge_into_the_whole(mixture, tmp_path):
    first = mixture.collect(tmp_path / "first", 0, 4)
    second = mixture.collect(tmp_path / "second", 4, N, on=first.directory)
    whole = mixture.collect(tmp_path / "whole", on=first.directory)
    merge_artifacts([first.directory, second.directory], tmp_path / "merged")
    require_same(arrays(Statistics(tmp_path / "merged")), arrays(whole), ignored=("nearest",))


def test_planned_arrays_of_a_mixture_are_those_of_a_real_artifact(mixture, tmp_path):
    numbers = {"windows": N, "window_tokens": T, "classes": 5, "micro_topics": 4}
    sizes = Sizes(**read_config(mixture.source / "config.json"), **numbers, gram=True)
    assert sizes.weight_bytes == 2 * (mixture.artifact.n_parameters)
    for profile in ("full", "standard"):
        held = mixture.statistics if profile == "full" else mixture.collect(tmp_path / profile, profile=profile)
        real = {one.path: (one.shape, one.dtype) for one in stored_arrays(held)}
        assert {one.path: (one.shape, one.dtype) for one in planned_arrays(sizes.shape, profile)} == real


def test_arrays_say_that_they_have_an_axis_of_experts(mixture):
    import zarr

    array = zarr.open_group(mixture.statistics.directory / "taps.zarr", mode="r")["neuron/sum_abs"]
    assert array.shape == (2, E, N, 40)
    assert array.attrs["axes"] == ["layer", "expert", "document", "channel"]


def test_widths_that_transformers_cannot_run_are_not_cut_out(mixture, tmp_path):
    pattern = read_pattern({"rule": "structured", "sparsity": 0.25, "attention": False}, "p")
    seen = Statistics(mixture.statistics.directory)
    old = read_recipe(both("neuronrank_old"), "r")
    seen.modules = [m for m in seen.modules if not m.input_tap.endswith(f".{UNUSED}") or m.layer]
    factors = compute_factors(seen, old)
    factors[f"neurons.0.{UNUSED}"] = np.arange(1, 41, dtype=np.float32)
    make_masks(mixture.artifact, factors, score_header(seen.manifest, "r", old), pattern, "p", tmp_path / "mask")
    assert {entry["block"] for entry in MaskFile(tmp_path / "mask").modules} == {
        f"{layer}.{expert}" for layer in range(2) for expert in range(E)
    }
    command = ["export", "--model", str(mixture.artifact.directory), "--mask", str(tmp_path / "mask")]
    refused = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "small"), "--compact"])
    assert "leaves 30 neurons of every expert, which transformers cannot run" in refused.output
    assert "it needs a multiple of 4" in refused.output


def test_layers_without_experts_are_refused(tmp_path):
    source = save(
        tmp_path / "source",
        "qwen3_moe",
        num_experts=E,
        moe_intermediate_size=40,
        decoder_sparse_step=2,
    )
    fetch_model({"source": "path", "path": str(source)}, tmp_path / "model")
    with pytest.raises(UnknownName, match=r"qwen3_moe.*linear modules \['mlp.down_proj', 'mlp.gate_proj', "):
        Skeleton(open_model(tmp_path / "model").checkpoint(), torch.float32)


def test_experts_that_share_a_tensor_on_disk_are_refused(tmp_path):
    """As some tools write them; which rows are whose is not stated there."""
    source = save(tmp_path / "source")
    tensors = {name: t for shard in sorted(source.glob("*.safetensors")) for name, t in load_file(shard).items()}
    for layer in range(2):
        name = f"model.layers.{layer}.block_sparse_moe.experts"
        parts = [[tensors.pop(f"{name}.{e}.{w}.weight") for w in ("w1", "w3", "w2")] for e in range(E)]
        tensors[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.stack([torch.cat(p[:2]) for p in parts])
        tensors[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.stack([p[2] for p in parts])
    for path in source.glob("*.safetensors*"):
        path.unlink()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    fetch_model({"source": "path", "path": str(source)}, tmp_path / "model")
    skeleton = Skeleton(open_model(tmp_path / "model").checkpoint(), torch.float32)
    with pytest.raises(MismatchError, match=r"no tensor '…block_sparse_moe.experts.0.w1.weight' for the experts"):
        skeleton.modules()


def seen_only(mixture: Mixture, enough=lambda one: len(one.tokens) > 0) -> Statistics:
    """The same statistics without the experts that no token reached, or not enough."""
    found = Statistics(mixture.statistics.directory)
    unseen = {key for key, one in mixture.routed.items() if not enough(one)}
    found.modules = [m for m in found.modules if (m.layer, expert_of(m.input_tap)) not in unseen]
    return found


def factors_of_gates(mixture: Mixture, recipe: dict, *enough) -> dict[tuple[int, int], np.ndarray]:
    factors = compute_factors(seen_only(mixture, *enough), read_recipe(recipe, "r"))
    name = "model.layers.{}.block_sparse_moe.experts.{}.w1.row"
    found = {key: factors.get(name.format(*key)) for key in seen_experts(mixture)}
    found = {key: factor for key, factor in found.items() if factor is not None}
    assert len(found) >= E
    return found


def test_classes_are_those_of_the_routed_tokens(mixture):
    classes = mixture.statistics.class_token_ids()[:3]

    def has_several(one: Routed) -> bool:
        is_classed = np.isin(mixture.token_ids.reshape(-1)[one.tokens].numpy(), classes)
        return is_classed.any() and not is_classed.all()

    factors = factors_of_gates(mixture, both("neuronrank_fisher", classes=3), has_several)
    for (layer, expert), found in factors.items():
        one = mixture.routed[layer, expert]
        ids, x = mixture.token_ids.reshape(-1)[one.tokens].numpy(), one.neuron.double().numpy()
        rows = [x[ids == token] for token in classes] + [x[~np.isin(ids, classes)]]
        rows = [row for row in rows if len(row)]
        share = np.array([len(row) / len(x) for row in rows])[:, None]
        between = (share * (np.stack([row.mean(axis=0) for row in rows]) - x.mean(axis=0)) ** 2).sum(axis=0)
        within = (share * np.stack([row.var(axis=0) for row in rows])).sum(axis=0)
        ratio = between / (within + 1e-10)
        np.testing.assert_allclose(
            found, np.maximum(ratio / ratio.mean(), 1e-6), rtol=2e-3, err_msg=f"{layer}.{expert}"
        )


def test_topics_are_those_of_the_routed_tokens(mixture):
    recipe = both("neuronrank_tfidf", mode="topic", topics=4)
    for (layer, expert), found in factors_of_gates(mixture, recipe).items():
        one = mixture.routed[layer, expert]
        labels = mixture.statistics.layer_values(layer, "topics", "labels").astype(np.int64).reshape(-1)[one.tokens]
        x = one.neuron.double().abs().numpy()
        means = np.stack([x[labels == topic].mean(axis=0) for topic in np.unique(labels)])
        reached = (means >= np.quantile(means, 0.6)).sum(axis=0)
        expected = means.mean(axis=0) * (np.log((len(means) + 1) / (reached + 1)) + 1)
        np.testing.assert_allclose(found, expected, rtol=2e-5, err_msg=f"{layer}.{expert}")


def test_fewer_samples_are_what_the_first_windows_sent(mixture):
    first = 3
    statistics = seen_only(mixture)
    for layer, expert in seen_experts(mixture):
        one = mixture.routed[layer, expert]
        early = one.tokens < first * T
        tap = statistics.tap(layer, f"neuron.{expert}", first)
        assert (tap.n, tap.n_documents) == (int(early.sum()), len(torch.unique(one.tokens[early] // T)))
        np.testing.assert_allclose(tap.total("sum_abs"), one.neuron[early].abs().double().sum(0), rtol=1e-5)


def test_experts_that_see_few_tokens_compare_with_those_that_see_many(mixture):
    """Norms are per token where weights of several modules compete; within a module nothing changes."""
    factors = compute_factors(seen_only(mixture), read_recipe(both("wanda"), "r"))
    for layer, expert in seen_experts(mixture):
        x = mixture.routed[layer, expert].x.double()
        expected = (x.square().mean(dim=0) * N * T).sqrt()
        name = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.column"
        np.testing.assert_allclose(factors[name], expected, rtol=1e-5)


def test_layer_by_layer_an_expert_sees_what_pruned_layers_leave(tmp_path):
    source = save(tmp_path / "source", num_experts_per_tok=2, num_local_experts=3)
    fetch_model({"source": "path", "path": str(source)}, tmp_path / "model")
    artifact = open_model(tmp_path / "model")
    token_ids = torch.randint(3, 64, (N, T), generator=torch.Generator().manual_seed(1))
    recipe = read_recipe({"attention": {"method": "wanda"}, "mlp": {"method": "wanda"}}, "r")
    pattern = read_pattern({"rule": "unstructured", "sparsity": 0.5}, "p")
    options = CollectParams.model_validate({**OPTIONS, "profile": "wanda"})
    setup = Setup(propagation=sequential(artifact, recipe, pattern))
    collect_statistics(artifact, windows(token_ids), options, tmp_path / "statistics", setup)
    statistics = Statistics(tmp_path / "statistics")
    factors, header = compute_factors(statistics, recipe), score_header(statistics.manifest, "r", recipe)
    make_masks(artifact, factors, header, pattern, "p", tmp_path / "mask")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, experts_implementation="eager").eval()
    masks = MaskFile(tmp_path / "mask")
    with torch.no_grad():
        for name in masks.weights:
            if name.startswith("model.layers.0."):
                mask_weight_(model, name, torch.from_numpy(masks.keep(name)))
    after = {}
    model.model.layers[1].mlp.experts.register_forward_pre_hook(lambda _m, inputs: after.update(x=inputs))
    with torch.no_grad():
        model(token_ids, use_cache=False)
    hidden, chosen, _ = after["x"]
    for expert in range(3):
        expected = hidden[(chosen == expert).any(dim=1)].double().square().sum(dim=0)
        np.testing.assert_allclose(
            statistics.layer_values(1, f"mlp_in.{expert}", "wanda_sum_sq"), expected, rtol=1e-4, err_msg=str(expert)
        )


def mask_weight_(model, name: str, keep: Tensor) -> None:
    """Zero the removed weights of a tensor of the checkpoint in the model as transformers holds it."""
    if ".experts." not in name:
        model.get_parameter(name).mul_(keep)
        return
    expert, which = int(name.split(".experts.")[1].split(".")[0]), name.split(".")[-2]
    experts = model.model.layers[0].mlp.experts
    rows = {"w1": slice(0, 40), "w3": slice(40, 80)}
    (experts.down_proj[expert] if which == "w2" else experts.gate_up_proj[expert, rows[which]]).mul_(keep)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_collects_of_experts_what_a_cpu_does(mixture, tmp_path, monkeypatch):
    on_gpu = mixture.collect(tmp_path / "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = mixture.collect(tmp_path / "cpu", on=on_gpu.directory)
    for path, values in arrays(on_cpu).items():
        if path.endswith(("sum_abs", "sum_sq", "n_tokens", "class_count")):
            np.testing.assert_allclose(arrays(on_gpu)[path], values, rtol=1e-3, atol=1e-3, err_msg=path)


@pytest.mark.slow
def test_two_processes_collect_a_mixture_as_one_does(mixture, tiny_texts, tmp_path):
    params = tiny_params(mixture.source, tiny_texts)
    params["model"]["architecture"] = "mixtral"
    project = Project(tmp_path, params)
    for done in (project.fetch("model"), project.fetch("text"), project.prepare(), project.collect()):
        assert done.exit_code == 0, done.output
    inputs = ["--model", str(project.artifacts / "model"), "--tokens", str(project.artifacts / "tokens/calibration")]
    out, metrics = tmp_path / "shared/statistics", tmp_path / "shared.json"
    outputs = ["--out", str(out), "--metrics", str(metrics), "--params", str(project.params)]
    done = torchrun(2, "stages.collect", *inputs, *outputs)
    assert done.returncode == 0, done.stderr[-3000:]
    require_same(arrays(Statistics(out)), arrays(Statistics(project.statistics)))
