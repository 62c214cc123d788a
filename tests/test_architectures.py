"""Every supported architecture, on a tiny random model of its own type: taps, modules and masks against plain PyTorch.

The reference walks the model as transformers loads it and knows nothing of layouts: hooks on every linear module, and
per architecture a few lines that split what its own attention splits.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from neuronrank import registry
from neuronrank.checkpoint import ModelArtifact, open_model
from neuronrank.cli import main
from neuronrank.collecting import collect_statistics
from neuronrank.collection import CollectParams
from neuronrank.evaluation import load_model
from neuronrank.fetching import fetch_model
from neuronrank.mask_store import MaskFile
from neuronrank.masking import make_masks
from neuronrank.patterns import read_pattern
from neuronrank.recipes import read_recipe
from neuronrank.scores import compute_factors, score_header
from neuronrank.shards import INDEX
from neuronrank.statistics_store import Statistics
from neuronrank.windows import Windows
from tests.conftest import TINY, write_tokenizer
from tests.imports import ROOT

_WINDOW = {"sliding_window": 8}
"""Shorter than the documents, so that the two kinds of layers get different masks."""
_GPT2 = {"vocab_size": 64, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64}
_FALCON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}

N_EXPERTS = 4
EXPERT_NAMES = {
    "mixtral": ("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3", "block_sparse_moe.experts.{}.w2"),
    "qwen3_moe": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"),
}
"""Gate, up and down of an expert, as the published checkpoints name them."""

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", TINY),
    "mistral": ("mistral", {**TINY, **_WINDOW}),
    "qwen2": ("qwen2", {**TINY, "hidden_size": 32}),
    "qwen3": ("qwen3", TINY),
    "gemma2": ("gemma2", {**TINY, **_WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3_text": ("gemma3_text", {**TINY, **_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "olmo2": ("olmo2", TINY),
    "phi3": ("phi3", {**TINY, "hidden_size": 32, "pad_token_id": 0}),
    "opt": (
        "opt",
        {
            "vocab_size": 64,
            "hidden_size": 24,
            "ffn_dim": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 24,
        },
    ),
    "gpt2": ("gpt2", {**_GPT2, "n_inner": 40}),
    "gpt_neox": (
        "gpt_neox",
        {
            "vocab_size": 64,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
    ),
    "falcon, grouped": (
        "falcon",
        {**_FALCON, "num_kv_heads": 2, "new_decoder_architecture": True, "ffn_hidden_size": 40},
    ),
    "falcon, one key head": ("falcon", {**_FALCON, "multi_query": True, "ffn_hidden_size": 40}),
    "falcon, head by head": ("falcon", {**_FALCON, "multi_query": False, "alibi": True, "ffn_hidden_size": 40}),
    "bloom": ("bloom", {"vocab_size": 64, "hidden_size": 24, "n_layer": 2, "n_head": 4}),
    "mixtral": ("mixtral", {**TINY, "num_local_experts": N_EXPERTS, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            **TINY,
            "intermediate_size": 56,  # of layers without experts, of which there are none
            "moe_intermediate_size": 40,
            "num_experts": N_EXPERTS,
            "num_experts_per_tok": 2,
        },
    ),
}
N_DOCUMENTS, N_TOKENS = 5, 12
OPTIONS = {
    "dtype": "float32",
    "documents_per_batch": 2,
    "profile": "full",
    "classes": 4,
    "topics": {"micro_topics": 3, "iterations": 4, "seed": 0},
}


@dataclass(frozen=True)
class Case:
    """A tiny model, as transformers has it and as we keep it, and its statistics."""

    architecture: str
    artifact: ModelArtifact
    reference: Any
    token_ids: torch.Tensor
    statistics: Statistics
    inputs: dict[str, torch.Tensor]
    """Name of a linear module of a layer -> what enters it, (tokens, I)."""
    outputs: dict[str, torch.Tensor]
    documents: dict[str, torch.Tensor]
    """Name of such a module -> the document of each of its tokens."""

    def layer(self, index: int) -> nn.Module:
        return next(m for m in self.reference.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)[index]


def add_old_buffers(source: Path) -> None:
    """As Pythia's published checkpoints have them in every layer; float16 has no -1e9, so that it is -inf there."""
    buffers = {}
    for layer in range(2):
        name = f"gpt_neox.layers.{layer}.attention"
        buffers[f"{name}.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
        buffers[f"{name}.masked_bias"] = torch.tensor(-1e9).half()
        buffers[f"{name}.rotary_emb.inv_freq"] = torch.tensor([1.0, 0.01]).half()
    save_file(buffers, source / "buffers.safetensors", metadata={"format": "pt"})
    index = json.loads((source / INDEX).read_text())
    index["weight_map"] |= dict.fromkeys(buffers, "buffers.safetensors")
    (source / INDEX).write_text(json.dumps(index))


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def linears(model: Any) -> dict[str, Any]:
    """Return every linear module inside the decoder layers, those of experts as the checkpoint has them."""
    found = {name: m for name, m in model.named_modules() if is_linear(m) and any(p.isdigit() for p in name.split("."))}
    for index, experts in enumerate(mixtures(model)):
        for expert in range(N_EXPERTS):
            gate, up = experts.gate_up_proj[expert].chunk(2)
            for name, weight in zip(names_of(model, index, expert), (gate, up, experts.down_proj[expert]), strict=True):
                found[name] = SimpleNamespace(weight=weight.detach())
    return found


def mixtures(model: Any) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(".experts")]


def names_of(model: Any, index: int, expert: int) -> list[str]:
    return [f"model.layers.{index}.{name.format(expert)}" for name in EXPERT_NAMES[model.config.model_type]]


def rows_of(module: nn.Module) -> torch.Tensor:
    """Return the weight as (O, I)."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


@pytest.fixture(scope="module", params=list(CASES))
def case(request, tmp_path_factory) -> Case:
    model_type, settings = CASES[request.param]
    torch.manual_seed(2)
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    source = tmp_path_factory.mktemp("source")
    model.save_pretrained(source, max_shard_size="15KB")
    if model_type == "gpt_neox":
        add_old_buffers(source)
    write_tokenizer(source)
    fetched = tmp_path_factory.mktemp("fetched") / "model"
    fetch_model({"source": "path", "path": str(source)}, fetched)
    artifact = open_model(fetched)
    generator = torch.Generator().manual_seed(3)
    token_ids = torch.randint(3, 64, (N_DOCUMENTS, N_TOKENS), generator=generator)
    windows = Windows(token_ids.int().numpy(), {"seed": 0, "source": {}, "origins": []})
    out = tmp_path_factory.mktemp("artifacts") / "statistics"
    collect_statistics(artifact, windows, CollectParams.model_validate(OPTIONS), out)
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    return Case(model_type, artifact, reference, token_ids, Statistics(out), *seen(reference, token_ids))


def seen(model: Any, token_ids: torch.Tensor) -> tuple[dict[str, torch.Tensor], ...]:
    """Return what enters and leaves every linear module of the layers, in one forward over all documents.

    And of which document each token is.
    """
    inputs, outputs, handles = {}, {}, []
    document_of = torch.arange(N_DOCUMENTS).repeat_interleave(N_TOKENS)
    documents = dict.fromkeys(linears(model), document_of)
    for index, experts in enumerate(mixtures(model)):

        def split_tokens(experts, arguments, index=index):
            hidden, chosen, _weights = arguments
            for expert in range(N_EXPERTS):
                gate_name, up_name, down_name = names_of(model, index, expert)
                routed = (chosen == expert).any(dim=1)
                documents.update(dict.fromkeys((gate_name, up_name, down_name), document_of[routed]))
                gate, up = (hidden[routed] @ experts.gate_up_proj[expert].T).chunk(2, dim=1)
                inputs[gate_name] = inputs[up_name] = hidden[routed]
                outputs[gate_name], outputs[up_name] = gate, up
                inputs[down_name] = nn.functional.silu(gate) * up
                outputs[down_name] = inputs[down_name] @ experts.down_proj[expert].T

        handles.append(experts.register_forward_pre_hook(split_tokens))
    for name, module in model.named_modules():
        if name not in linears(model):
            continue

        def keep(_module, arguments, output, name=name):
            inputs[name] = arguments[0].detach().reshape(-1, arguments[0].shape[-1])
            outputs[name] = output.detach().reshape(-1, output.shape[-1])

        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model(token_ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return inputs, outputs, documents


def split(case: Case, index: int) -> dict[str, torch.Tensor]:
    """Return q, k, v, gate_pre and neuron of a layer, (tokens, C), split as the architecture's own code splits them."""
    prefix = next(found[0] for name in case.outputs if (found := re.match(rf"\D+\.{index}\.", name)))
    out = {name.removeprefix(prefix): values for name, values in case.outputs.items() if name.startswith(prefix)}
    into = {name.removeprefix(prefix): values for name, values in case.inputs.items() if name.startswith(prefix)}
    config, found = case.reference.config, {}
    n_heads = config.num_attention_heads
    if case.architecture == "phi3":
        found["q_out"], found["k_out"], found["v_out"] = out["self_attn.qkv_proj"].split([32, 16, 16], dim=1)
        gate, _up = out["mlp.gate_up_proj"].chunk(2, dim=-1)
        return {**found, "gate_pre": gate, "neuron": ACT2FN[config.hidden_act](gate)}
    if case.architecture == "gpt2":
        found["q_out"], found["k_out"], found["v_out"] = out["attn.c_attn"].chunk(3, dim=1)
        return {**found, "gate_pre": out["mlp.c_fc"], "neuron": into["mlp.c_proj"]}
    if case.architecture == "gpt_neox":
        heads = out["attention.query_key_value"].reshape(-1, n_heads, 3, 6)
    elif case.architecture == "bloom":
        heads = out["self_attention.query_key_value"].reshape(-1, n_heads, 3, 6)
    elif case.architecture == "falcon":
        attention = case.layer(index).self_attention
        fused = out["self_attention.query_key_value"].reshape(N_DOCUMENTS, N_TOKENS, -1)
        q, k, v = (part.flatten(0, 1) for part in attention._split_heads(fused))
        every = n_heads // config.num_kv_heads if config.new_decoder_architecture else 1  # it repeats keys and values
        found = {"q_out": q.flatten(1), "k_out": k[:, ::every].flatten(1), "v_out": v[:, ::every].flatten(1)}
        return {**found, "gate_pre": out["mlp.dense_h_to_4h"], "neuron": into["mlp.dense_4h_to_h"]}
    else:
        found = {f"{name}_out": out[f"self_attn.{name}_proj"] for name in "qkv"}
        if case.architecture == "opt":
            return {**found, "gate_pre": out["fc1"], "neuron": torch.relu(out["fc1"])}
        if case.architecture in EXPERT_NAMES:
            gates = {e: out[EXPERT_NAMES[case.architecture][0].format(e)] for e in range(N_EXPERTS)}
            neurons = {f"neuron.{e}": nn.functional.silu(gate) for e, gate in gates.items()}
            return {**found, **{f"gate_pre.{e}": gate for e, gate in gates.items()}, **neurons}
        act = getattr(config, "hidden_act", None) or config.hidden_activation
        act = getattr(config, "hidden_activation", None) or act
        return {**found, "gate_pre": out["mlp.gate_proj"], "neuron": ACT2FN[act](out["mlp.gate_proj"])}
    found = {f"{name}_out": heads[:, :, position].flatten(1) for position, name in enumerate("qkv")}
    return {**found, "gate_pre": out["mlp.dense_h_to_4h"], "neuron": into["mlp.dense_4h_to_h"]}


def test_every_architecture_has_a_case_and_a_row_in_the_docs():
    assert {model_type for model_type, _ in CASES.values()} == set(registry.names("models"))
    rows = [line for line in (ROOT / "docs/ARCHITECTURES.md").read_text().splitlines() if line.startswith("| `")][1:]
    assert [row.split("`")[1] for row in rows] == registry.names("models")


def test_neuron_taps_are_what_the_architecture_splits(case):
    for index in range(2):
        for tap, values in split(case, index).items():
            found = case.statistics.tap(index, tap, None)
            np.testing.assert_allclose(found.total("sum_abs"), values.abs().double().sum(0), rtol=2e-5, err_msg=tap)
            document_of = document_of_tokens(case, index, tap)
            by_document = torch.stack([values[document_of == n].sum(0) for n in document_of.unique()])
            np.testing.assert_allclose(found.documents("sum"), by_document, rtol=1e-3, atol=2e-4, err_msg=tap)


def document_of_tokens(case: Case, index: int, tap: str) -> torch.Tensor:
    """Return of which document each token is that reaches a tap."""
    if "." not in tap:
        return torch.arange(N_DOCUMENTS).repeat_interleave(N_TOKENS)
    return case.documents[names_of(case.reference, index, int(tap.partition(".")[2]))[0]]


def test_input_taps_are_what_enters_the_modules(case):
    of_weight: dict[str, set[str]] = {}
    for module in case.statistics.modules:
        name = module.weight.removesuffix(".weight")
        of_weight.setdefault(name, set()).add(module.input_tap)
        found = case.statistics.tap(module.layer, module.input_tap, None).total("sum_sq")
        np.testing.assert_allclose(found, case.inputs[name].double().square().sum(0), rtol=5e-5, err_msg=module.name)
    assert of_weight.keys() == linears(case.reference).keys(), "every linear module of the layers has a role"


def naive_wanda(case: Case) -> dict[str, torch.Tensor]:
    """Return the (O, I) mask of every linear module: in each row half of |W| times the norm of its input goes."""
    masks = {}
    for name, module in linears(case.reference).items():
        score = rows_of(module).abs() * case.inputs[name].double().square().sum(0).sqrt().float()
        removed = score.argsort(dim=1, stable=True)[:, : score.shape[1] // 2]
        masks[name] = torch.ones_like(score, dtype=torch.bool).scatter_(1, removed, False)
    return masks


def prune(case: Case, out: Path, method: str = "wanda", **pattern: Any) -> MaskFile:
    recipe = read_recipe({"attention": {"method": method}, "mlp": {"method": method}}, "recipe")
    factors, header = compute_factors(case.statistics, recipe), score_header(case.statistics.manifest, "mine", recipe)
    make_masks(case.artifact, factors, header, read_pattern(pattern, "pattern"), "mine", out)
    return MaskFile(out)


def export(case: Case, mask: MaskFile, out: Path, *options: str) -> Any:
    command = ["export", "--model", str(case.artifact.directory), "--mask", str(mask.path), "--out", str(out)]
    done = CliRunner().invoke(main, [*command, *options])
    assert done.exit_code == 0, done.output
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()


def logits(model: Any, case: Case) -> torch.Tensor:
    with torch.no_grad():
        return model(case.token_ids, use_cache=False).logits


def test_wanda_removes_what_plain_pytorch_removes(case, tmp_path):
    mask = prune(case, tmp_path / "mask", rule="unstructured", sparsity=0.5)
    exported = export(case, mask, tmp_path / "exported")
    found = linears(exported)
    for name, keep in naive_wanda(case).items():
        assert torch.equal(rows_of(found[name]) != 0, keep), name
    evaluated = load_model(case.artifact, torch.float32, torch.device("cpu"), mask)
    assert torch.equal(logits(evaluated, case), logits(exported, case))
    assert (logits(exported, case) - logits(case.reference, case)).abs().max() > 0.1


def test_groups_are_of_the_module_and_not_of_the_weight_it_shares(case, tmp_path):
    mask = prune(case, tmp_path / "mask", "neuronrank_tfidf", rule="unstructured", sparsity=0.3, attention=True)
    sizes = {entry["name"]: (entry["n_removed"], np.prod(entry["shape"])) for entry in mask.modules}
    assert all(removed == int(0.3 * size + 1e-9) for removed, size in sizes.values()), sizes
    assert len(sizes) == 2 * (4 + n_mlp_modules(case))


def n_mlp_modules(case: Case) -> int:
    if case.architecture in EXPERT_NAMES:
        return 3 * N_EXPERTS
    return 2 if case.architecture in ("bloom", "falcon", "gpt2", "gpt_neox", "opt") else 3


def test_whole_neurons_are_removed_and_can_be_cut_out(case, tmp_path):
    recipe = read_recipe({"attention": {"method": "none"}, "mlp": {"method": "neuronrank_old"}}, "recipe")
    factors, header = compute_factors(case.statistics, recipe), score_header(case.statistics.manifest, "mine", recipe)
    n_left = 32 if case.architecture in EXPERT_NAMES else 30  # experts are run with multiples of 4 only
    pattern = read_pattern({"rule": "structured", "sparsity": 1 - n_left / 40, "attention": False}, "pattern")
    make_masks(case.artifact, factors, header, pattern, "mine", tmp_path / "mask")
    mask = MaskFile(tmp_path / "mask")
    zeroed = load_model(case.artifact, torch.float32, torch.device("cpu"), mask)
    if case.architecture == "bloom":
        command = ["export", "--model", str(case.artifact.directory), "--mask", str(mask.path)]
        refused = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "small"), "--compact"])
        assert "a bloom has no entry for the width of its MLP" in refused.output
        return
    small = export(case, mask, tmp_path / "small", "--compact")
    torch.testing.assert_close(logits(small, case), logits(zeroed, case), rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert n_left in config.values()
    assert (logits(case.reference, case) - logits(small, case)).abs().max() > 1e-3
