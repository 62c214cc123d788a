"""Importance matrices of llama.cpp as statistics, and statistics as importance matrices, on tiny models.

The names of GGUF tensors are written out here, as llama.cpp's own models carry them, and sums are numbers of the tests.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import neuronrank
from neuronrank import registry
from neuronrank.checkpoint import ModelArtifact, open_model
from neuronrank.cli import main
from neuronrank.collecting import collect_statistics
from neuronrank.collection import CollectParams
from neuronrank.errors import ArtifactError, DegenerateError, MismatchError, NotFiniteError, SourceError, UnknownName
from neuronrank.exporting_imatrix import export_imatrix
from neuronrank.fetching import fetch_model
from neuronrank.files import sha256_file, write_sealed_json
from neuronrank.imatrix_names import SUPPORTED
from neuronrank.importing_imatrix import import_imatrix
from neuronrank.mask_store import MaskFile
from neuronrank.merging_artifacts import fitted_on, merge_artifacts
from neuronrank.recipes import read_recipe
from neuronrank.scores import compute_factors
from neuronrank.statistics_store import Statistics
from neuronrank.windows import Windows
from tests import artifacts
from tests.conftest import TINY, write_tokenizer
from tests.imatrix_files import KEYS, pair, read_by_gguf, write_by_gguf
from tests.imports import ROOT
from tests.project import Project, tiny_params

N_TOKENS, N_EXPERTS, N_LAYERS = 1536, 5, 2
TYPES: dict[str, dict[str, Any]] = {
    "gemma2": {**TINY, "query_pre_attn_scalar": 8},
    "gemma3_text": {**TINY, "layer_types": ["sliding_attention", "full_attention"]},
    "llama": TINY,
    "mistral": TINY,
    "mixtral": {**TINY, "num_local_experts": N_EXPERTS, "num_experts_per_tok": 2},
    "olmo2": TINY,
    "phi3": {**TINY, "hidden_size": 32, "pad_token_id": 0},
    "qwen2": {**TINY, "hidden_size": 32},
    "qwen3": TINY,
    "qwen3_moe": {**TINY, "moe_intermediate_size": 40, "num_experts": N_EXPERTS, "num_experts_per_tok": 2},
}
SEPARATE = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
DENSE = {**SEPARATE, "ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}
NAMES: dict[str, dict[str, str]] = {
    **dict.fromkeys(TYPES, DENSE),
    "phi3": {"attn_qkv": "qkv_proj", "attn_output": "o_proj", "ffn_up": "gate_up_proj", "ffn_down": "down_proj"},
    "mixtral": {**SEPARATE, "ffn_gate_exps": "w1", "ffn_up_exps": "w3", "ffn_down_exps": "w2"},
    "qwen3_moe": {**SEPARATE, "ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"},
}
"""Tensor of a GGUF model's block -> the last part of the weight's name in the checkpoint."""
SAME_INPUT = ({"attn_q", "attn_k", "attn_v"}, {"ffn_gate", "ffn_up"}, {"ffn_gate_exps", "ffn_up_exps"})


def fetched(directory: Path, model_type: str) -> ModelArtifact:
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **TYPES[model_type]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(directory / "source", max_shard_size="30KB")
    write_tokenizer(directory / "source")
    fetch_model({"source": "path", "path": str(directory / "source")}, directory / "model")
    return open_model(directory / "model")


def widths(model_type: str) -> dict[str, int]:
    """Input channels of each tensor of a block: hidden size, all heads together, width of the MLP."""
    hidden = TYPES[model_type]["hidden_size"]
    narrow = {"attn_output": 32, "ffn_down": 40, "ffn_down_exps": 40}
    return {name: narrow.get(name, hidden) for name in NAMES[model_type]}


def routed_tokens(drawn: np.random.Generator) -> np.ndarray:
    """Tokens of each expert, where every token goes through two of them that differ."""
    chosen = drawn.random((N_TOKENS, N_EXPERTS)).argsort(axis=1)[:, :2]
    return np.bincount(chosen.ravel(), minlength=N_EXPERTS)


def tensors_of(model_type: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Sums and counts for every tensor of every block; the same where the same tensor enters."""
    drawn, found = np.random.default_rng(seed), {}
    for layer in range(N_LAYERS):
        routed = routed_tokens(drawn)
        done: dict[frozenset, np.ndarray] = {}
        for name, width in sorted(widths(model_type).items()):
            together = frozenset(next((names for names in SAME_INPUT if name in names), {name}))
            counts = routed if name.endswith("exps") else [N_TOKENS]
            if together not in done:
                done[together] = drawn.lognormal(3, 4, (len(counts), width)).astype(np.float32)
            found |= pair(f"blk.{layer}.{name}.weight", done[together], counts)
    return found


@pytest.fixture(scope="module", params=sorted(TYPES))
def case(request, tmp_path_factory):
    """A model, an importance matrix of it by the gguf package, and the artifact that it was imported to."""
    directory = tmp_path_factory.mktemp(request.param)
    model = fetched(directory, request.param)
    path = write_by_gguf(directory / "imatrix.gguf", tensors_of(request.param))
    import_imatrix(path, model, directory / "statistics")
    return request.param, path, Statistics(directory / "statistics")


def test_every_supported_architecture_has_a_case():
    assert SUPPORTED.keys() == TYPES.keys()


def test_every_module_has_the_sums_of_its_tensor(case):
    model_type, _, statistics = case
    tensors, seen = tensors_of(model_type), set()
    for module in statistics.modules:
        last = module.weight.removesuffix(".weight").rpartition(".")[2]
        (name,) = (name for name, own in NAMES[model_type].items() if own == last)
        expert = int(module.weight.partition(".experts.")[2].partition(".")[0] or 0)
        key = f"blk.{module.layer}.{name}.weight"
        sums = tensors[f"{key}.in_sum2"].reshape(-1, module.shape[1])[expert]
        tap = statistics.tap(module.layer, module.input_tap, None)
        assert tap.total("sum_sq").dtype == np.float64
        assert tap.total("sum_sq").astype(np.float32).tobytes() == sums.tobytes(), module.name
        assert tap.n == tensors[f"{key}.counts"].reshape(-1)[expert], module.name
        n_all = N_TOKENS  # an expert's norm is that of as many tokens as there are
        norm = np.sqrt(sums.astype(np.float64) * (n_all / tap.n))
        np.testing.assert_allclose(tap.l2_norm(), norm, rtol=1e-12)
        seen.add(f"{key}.{expert}")
    n_mats = sum(N_EXPERTS if name.endswith("exps") else 1 for name in NAMES[model_type])
    assert len(seen) == N_LAYERS * n_mats


def test_what_was_imported_is_exported_bit_for_bit(case, tmp_path):
    model_type, path, statistics = case
    written = export_imatrix(statistics.directory, tmp_path / "out.gguf")
    assert len(written.entries) == N_LAYERS * len(NAMES[model_type])
    keys, tensors = read_by_gguf(tmp_path / "out.gguf")
    assert (keys, tensors) == read_by_gguf(path)
    assert keys["imatrix.datasets"] == KEYS["datasets"]
    assert all(tensors[name][1] == values.tobytes() for name, values in tensors_of(model_type).items())


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> ModelArtifact:
    return fetched(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory) -> ModelArtifact:
    return fetched(tmp_path_factory.mktemp("mixtral"), "mixtral")


def wanda_by_hand(weight: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Return which weights stay: in every row the half with the largest |W| * sqrt(sum of squares)."""
    score = np.abs(weight.astype(np.float32)) * np.sqrt(sums.astype(np.float64)).astype(np.float32)
    order = np.argsort(score, axis=1, kind="stable")
    keep = np.ones(score.shape, dtype=bool)
    np.put_along_axis(keep, order[:, : score.shape[1] // 2], False, axis=1)
    return keep


def test_the_commands_of_the_document_import_score_and_prune(tiny_model, tiny_texts, tmp_path, monkeypatch):
    """Every command of docs/IMATRIX.md, in its order, in a project; then scores and masks against numpy."""
    project = Project(tmp_path, tiny_params(tiny_model, tiny_texts))
    assert project.fetch("model").exit_code == 0
    write_by_gguf(tmp_path / "imatrix.gguf", tensors_of("llama"))
    monkeypatch.chdir(tmp_path)
    document = (ROOT / "docs/IMATRIX.md").read_text()
    shown = [line for block in document.split("```\n")[1::2] for line in block.splitlines()]
    commands = [line.partition("#")[0].split() for line in shown if not line.startswith("llama-")]
    assert [command[:3] for command in commands] == [
        ["neuronrank", "import-imatrix", "imatrix.gguf"],
        ["python", "-m", "stages.score"],
        ["python", "-m", "stages.prune"],
        ["neuronrank", "export-imatrix", "artifacts/imported"],
    ]
    for command in commands:
        if command[0] == "neuronrank":
            done = CliRunner().invoke(main, command[1:])
        else:
            stage = registry_of_stages()[command[2].removeprefix("stages.")]
            done = CliRunner().invoke(stage, command[3:])
        assert done.exit_code == 0, done.output
    assert read_by_gguf(tmp_path / "exported.gguf") == read_by_gguf(tmp_path / "imatrix.gguf")
    factors, tensors = load_file(tmp_path / "artifacts/scores/imported.safetensors"), tensors_of("llama")
    masks, checked = MaskFile(tmp_path / "artifacts/masks/imported.safetensors"), 0
    for shard in tiny_model.glob("*.safetensors"):
        with safe_open(shard, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                own = {f"{last}.weight": gguf_name for gguf_name, last in DENSE.items()}
                if ".layers." not in name or name.rpartition("_proj")[1] == "":
                    continue
                layer, last = name.split(".")[2], name.rpartition(".weight")[0].rpartition(".")[2] + ".weight"
                sums = tensors[f"blk.{layer}.{own[last]}.weight.in_sum2"]
                factor = factors[f"{name.removesuffix('.weight')}.column"]
                assert factor.tobytes() == np.sqrt(sums.astype(np.float64)).astype(np.float32).tobytes(), name
                assert np.array_equal(masks.keep(name), wanda_by_hand(file.get_tensor(name), sums)), name
                checked += 1
    assert checked == N_LAYERS * 7


def registry_of_stages() -> dict[str, Any]:
    from tests.project import STAGES

    return STAGES


def test_the_manifest_says_what_is_known_and_what_is_not(llama, tmp_path):
    others = {"blk.0.attn_q.weight.in_sum": np.ones(24, np.float32), **pair("output.weight", np.ones((1, 24)), [5])}
    path = write_by_gguf(tmp_path / "mine.gguf", {**tensors_of("llama"), **others})
    found = import_imatrix(path, llama, tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["profile"] == "wanda"
    assert manifest["model"]["fingerprint"] == llama.fingerprint
    assert manifest["collect"]["dtype"] == "unknown"
    assert manifest["collect"]["propagation"] == "imatrix"
    assert manifest["calibration"] == {
        "n_windows": 1,
        "window_tokens": N_TOKENS,
        "sha256": None,
        "seed": None,
        "origins": [],
        "source": {
            "source": "imatrix",
            "id": "mine.gguf",
            "sha256": sha256_file(path),
            "datasets": KEYS["datasets"],
            "chunk_count": 3,
            "chunk_size": 512,
            "left_out": ["output.weight", "blk.0.attn_q.weight.in_sum"],
        },
    }
    assert manifest["arrays"] == {tap: ["wanda_sum_sq"] for tap in ("attn_ctx", "attn_in", "mlp_in", "mlp_mid")}
    assert found.left_out == ("output.weight", "blk.0.attn_q.weight.in_sum")
    assert (found.n_tokens, found.n_entries, found.n_empty_experts) == (N_TOKENS, 14, 0)
    inspected = CliRunner().invoke(main, ["inspect", str(tmp_path / "out")])
    assert inspected.exit_code == 0, inspected.output
    assert f"n_tokens: {N_TOKENS}" in inspected.output
    sized = CliRunner().invoke(main, ["size", "--like", str(tmp_path / "out")])
    assert sized.exit_code == 0, sized.output


def test_the_weights_sums_are_those_of_the_model(llama, tmp_path):
    import_imatrix(write_by_gguf(tmp_path / "a.gguf", tensors_of("llama")), llama, tmp_path / "out")
    weight = llama.checkpoint().tensor("model.layers.1.mlp.down_proj.weight").double().numpy()
    name, statistics = "model.layers.1.mlp.down_proj", Statistics(tmp_path / "out")
    np.testing.assert_allclose(statistics.weight_sums(name, "row_sum_sq"), (weight**2).sum(1), rtol=1e-6)
    np.testing.assert_allclose(statistics.weight_sums(name, "column_sum_abs"), abs(weight).sum(0), rtol=1e-6)


def test_methods_that_read_more_are_refused_and_the_others_are_those_of_the_document(llama, tmp_path):
    import_imatrix(write_by_gguf(tmp_path / "a.gguf", tensors_of("llama")), llama, tmp_path / "out")
    statistics, served = Statistics(tmp_path / "out"), set(registry.names("scoring"))
    for name in registry.names("scoring"):
        for part in registry.load("scoring", name).PARTS:
            sections = {"attention": {"method": "none"}, "mlp": {"method": "none"}, part: {"method": name}}
            try:
                compute_factors(statistics, read_recipe(sections, "r"))
            except ArtifactError as err:
                served.discard(name)
                told = re.escape(str(tmp_path / "out")) + (
                    r": was imported from an importance matrix, which holds sums of squares alone, and has no "
                    r"\w+/\w+\. Use a method that needs no more, as wanda does, or collect the statistics on "
                    r"calibration text\. Run: dvc repro collect"
                )
                assert re.fullmatch(told, str(err))  # noqa: PT017
    listed = (ROOT / "docs/IMATRIX.md").read_text().split("can be scored from it:")[1].split(".")[0]
    assert served == {"wanda", "magnitude", "none"} == set(listed.split("`")[1::2])


def test_an_import_opened_from_python_tells_what_it_lacks(llama, tmp_path):
    import_imatrix(write_by_gguf(tmp_path / "a.gguf", tensors_of("llama")), llama, tmp_path / "out")
    stats = neuronrank.open_statistics(tmp_path / "out")
    for access in (
        lambda: stats.names_on("document"),
        lambda: stats.names_on("class"),
        lambda: stats["mlp_in/sum_sq"],
        lambda: stats.tap(0, "mlp_in").documents("sum_sq"),
    ):
        with pytest.raises(ArtifactError, match=r"was imported from an importance matrix, .*dvc repro collect"):
            access()
    with pytest.raises(MismatchError, match=r"does not tell documents apart; nsamples 2 cannot be taken from it"):
        stats.tap(0, "mlp_in", 2)
    (tmp_path / "out/weights.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"Run: neuronrank import-imatrix"):
        list(stats.weights)


TENSORS = tensors_of("llama")
Q, K, DOWN = (f"blk.1.{name}.weight" for name in ("attn_q", "attn_k", "ffn_down"))
ONE_BIT = np.nextafter(TENSORS[f"{K}.in_sum2"], np.float32(np.inf))
MISFITS = {
    "missing": ({f"{DOWN}.in_sum2": None, f"{DOWN}.counts": None}, rf"has no {DOWN}\. Was it measured on this model"),
    "foreign": (pair("blk.2.attn_q.weight", np.ones((1, 24)), [3]), r"has blk\.2\.attn_q\.weight of no module"),
    "router": (pair("blk.1.ffn_gate_inp.weight", np.ones((1, 24)), [3]), r"has blk\.1\.ffn_gate_inp\.weight of no mod"),
    "width": (pair(DOWN, np.ones((1, 41)), [N_TOKENS]), rf"{DOWN} has 1 x 41 sums, the model's weight needs 1 x 40"),
    "experts": (pair(DOWN, np.ones((2, 40)), [1, 2]), rf"{DOWN} has 2 x 40 sums, the model's weight needs 1 x 40"),
    "one bit": (pair(K, [ONE_BIT], [N_TOKENS]), rf"{Q} and {K} have different sums or counts"),
    "k counts": (pair(K, [TENSORS[f"{K}.in_sum2"]], [N_TOKENS - 1]), rf"{Q} and {K} have different sums or counts"),
    "count": (pair(DOWN, np.ones((1, 40)), [512]), rf"attn_q\.weight counts {N_TOKENS} tokens, {DOWN} 512"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_entries_of_another_model_are_refused_and_nothing_is_left(llama, tmp_path, misfit):
    tensors, message = MISFITS[misfit]
    every = {name: values for name, values in {**TENSORS, **tensors}.items() if values is not None}
    path = write_by_gguf(tmp_path / "misfit.gguf", every)
    with pytest.raises(MismatchError, match=message):
        import_imatrix(path, llama, tmp_path / "out")
    assert [found.name for found in tmp_path.iterdir()] == ["misfit.gguf"]


def test_no_token_at_all_is_refused(llama, tmp_path):
    nothing = {name: np.zeros_like(values) for name, values in TENSORS.items()}
    with pytest.raises(SourceError, match="counts no token"):
        import_imatrix(write_by_gguf(tmp_path / "a.gguf", nothing), llama, tmp_path / "out")


def test_what_exists_is_kept(llama, tmp_path):
    path = write_by_gguf(tmp_path / "a.gguf", TENSORS)
    import_imatrix(path, llama, tmp_path / "out")
    before = (tmp_path / "out/manifest.json").read_bytes()
    for command in (["import-imatrix", str(path), "--model", str(llama.directory)], ["export-imatrix", str(path)]):
        out = tmp_path / "out" if command[0].startswith("import") else path
        done = CliRunner().invoke(main, [*command, "--out", str(out)])
        assert done.exit_code == 1
        assert "already exists" in done.output
    assert (tmp_path / "out/manifest.json").read_bytes() == before


@pytest.mark.parametrize("model_type", sorted(set(registry.names("models")) - SUPPORTED.keys()))
def test_other_architectures_are_refused_with_the_list(model_type, tmp_path):
    from tests.test_architectures import CASES

    settings = next(settings for kind, settings in CASES.values() if kind == model_type)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    model.save_pretrained(tmp_path / "source")
    write_tokenizer(tmp_path / "source")
    fetch_model({"source": "path", "path": str(tmp_path / "source")}, tmp_path / "model")
    path = write_by_gguf(tmp_path / "a.gguf", TENSORS)
    with pytest.raises(UnknownName, match=f"architecture {model_type!r}: .*supported: gemma2, .*qwen3_moe"):
        import_imatrix(path, open_model(tmp_path / "model"), tmp_path / "out")
    collected = collect(open_model(tmp_path / "model"), tmp_path / "collected", "wanda")
    with pytest.raises(UnknownName, match="of an architecture whose importance matrices are not supported"):
        export_imatrix(collected.directory, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


TOKEN_IDS = torch.randint(3, 64, (6, 10), generator=torch.Generator().manual_seed(1))


def collect(model: ModelArtifact, out: Path, profile: str) -> Statistics:
    options = {"dtype": "float32", "documents_per_batch": 4, "profile": profile, "classes": 0}
    options["topics"] = {"micro_topics": 0, "iterations": 4, "seed": 0}
    windows = Windows(
        TOKEN_IDS.int().numpy(), {"seed": 0, "source": {"source": "files", "pattern": "x"}, "origins": []}
    )
    collect_statistics(model, windows, CollectParams.model_validate(options), out)
    return Statistics(out)


def entering(source: Path) -> dict[str, Tensor]:
    """Return what enters every linear module of the model as transformers runs it, (tokens, I)."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _module, given, name=name: found.update({name: given[0].reshape(-1, given[0].shape[-1])})
            )
    with torch.no_grad():
        model(TOKEN_IDS, use_cache=False)
    return found


def test_what_was_collected_is_exported_and_comes_back(llama, tmp_path):
    collected = collect(llama, tmp_path / "collected", "standard")
    export_imatrix(collected.directory, tmp_path / "one.gguf")
    keys, tensors = read_by_gguf(tmp_path / "one.gguf")
    assert (keys["imatrix.chunk_count"], keys["imatrix.chunk_size"]) == (6, 10)
    assert keys["imatrix.datasets"] == ['{ "pattern": "x", "source": "files" }']
    for name, values in entering(llama.weights_directory).items():
        if ".layers." in name:
            (own,) = (key for key, last in DENSE.items() if name.endswith(last))
            key = f"blk.{name.split('.')[2]}.{own}.weight"
            sums = np.frombuffer(tensors[f"{key}.in_sum2"][1], np.float32)
            np.testing.assert_allclose(sums, values.double().square().sum(0), rtol=5e-5, err_msg=name)
            assert np.frombuffer(tensors[f"{key}.counts"][1], np.float32).tolist() == [60]
    assert keys["neuronrank.model_fingerprint"] == llama.fingerprint
    assert keys["neuronrank.statistics"] == collected.manifest["file_sha256"]
    import_imatrix(tmp_path / "one.gguf", llama, tmp_path / "imported")
    imported = Statistics(tmp_path / "imported")
    for layer in range(N_LAYERS):
        for tap in ("attn_in", "attn_ctx", "mlp_in", "mlp_mid"):
            before, after = (one.layer_values(layer, tap, "wanda_sum_sq") for one in (collected, imported))
            assert np.array_equal(after, before.astype(np.float32).astype(np.float64))
    export_imatrix(tmp_path / "imported", tmp_path / "two.gguf")
    assert (tmp_path / "two.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()


def test_an_exported_matrix_is_of_its_model_alone_and_names_its_statistics(llama, tmp_path):
    collected = collect(llama, tmp_path / "collected", "wanda")
    export_imatrix(collected.directory, tmp_path / "one.gguf")
    assert not import_says_names_fit(tmp_path / "one.gguf", llama, tmp_path / "imported")
    made_from = json.loads((tmp_path / "imported/manifest.json").read_text())["made_from"]
    seal = collected.manifest["file_sha256"]
    assert made_from == {
        "model": llama.fingerprint,
        "exported": seal,
        "imatrix": sha256_file(tmp_path / "one.gguf"),
    }
    directories = [str(tmp_path / "imported"), str(collected.directory)]
    alone = CliRunner().invoke(main, ["verify", directories[0]])
    assert alone.exit_code == 0, alone.output  # the earlier statistics need not be kept
    together = CliRunner().invoke(main, ["verify", *directories])
    assert f"imported: made from statistics {collected.directory} ({seal[:12]}…)" in together.output
    same_shape = fetched(tmp_path / "other", "mistral")
    with pytest.raises(
        MismatchError, match=rf"of model {llama.fingerprint[:12]}…, and .*{same_shape.fingerprint[:12]}"
    ):
        import_imatrix(tmp_path / "one.gguf", same_shape, tmp_path / "out")
    assert import_says_names_fit(write_by_gguf(tmp_path / "theirs.gguf", TENSORS), llama, tmp_path / "theirs")


def import_says_names_fit(path: Path, model: ModelArtifact, out: Path) -> bool:
    command = ["import-imatrix", str(path), "--model", str(model.directory), "--out", str(out)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    return "does not say which model it was measured on" in done.output


def test_verify_confirms_the_file_that_statistics_were_imported_from(llama, tmp_path):
    path, out = write_by_gguf(tmp_path / "a.gguf", TENSORS), tmp_path / "out"
    import_imatrix(path, llama, out)
    done = CliRunner().invoke(main, ["verify", str(path), str(out)])
    assert done.exit_code == 0, done.output
    digest = sha256_file(path)[:12]
    assert f"ok     {path}: imatrix: sha256 {digest}…" in done.output
    assert f"ok     {path}: sums and counts of 14 weights, all finite" in done.output
    assert f"ok     {out}: made from imatrix {path} ({digest}…)" in done.output
    other = write_by_gguf(tmp_path / "b.gguf", {**TENSORS, **pair(DOWN, np.ones((1, 40)), [N_TOKENS])})
    differs = CliRunner().invoke(main, ["verify", str(other), str(out)])
    assert differs.exit_code == 1
    assert f"FAULT  {out}: made from imatrix {digest}…, which differs: {other}" in differs.output
    unsound = write_by_gguf(tmp_path / "c.gguf", {**TENSORS, **pair(DOWN, np.full((1, 40), np.nan), [N_TOKENS])})
    refused = CliRunner().invoke(main, ["verify", str(unsound)])
    assert refused.exit_code == 1
    assert f"FAULT  {unsound}: {DOWN}: 40 of 40 sums of squares are NaN" in refused.output


def test_counts_that_float32_rounds_are_told_and_those_that_no_import_takes_are_refused(llama, tmp_path):
    directory = tmp_path / "collected"
    path = directory / "manifest.json"
    collect(llama, directory, "wanda")
    for n_tokens, written in ((2**24, 2**24), (2**24 + 1, 2**24), (2**31 - 65, 2**31 - 128), (2**31 - 64, None)):
        manifest = json.loads(path.read_text())
        manifest["calibration"] |= {"n_windows": 1, "window_tokens": n_tokens}
        write_sealed_json(path, manifest)
        out = tmp_path / f"{n_tokens}.gguf"
        done = CliRunner().invoke(main, ["export-imatrix", str(directory), "--out", str(out)])
        if written is None:
            assert done.exit_code == 1
            assert "counts 2147483584 tokens, as float32 2147483648; 2147483647 at most" in done.output
            assert not out.exists()
            continue
        assert ("14 counts of tokens are above 2^24 and were rounded" in done.stderr) == (written != n_tokens)
        counts = read_by_gguf(out)[1]["blk.1.ffn_up.weight.counts"][1]
        assert np.frombuffer(counts, np.float32).tolist() == [written]
        import_imatrix(out, llama, tmp_path / f"{n_tokens}")


def test_an_imported_mixture_is_stored_as_a_collected_one(mixtral, tmp_path):
    collected = collect(mixtral, tmp_path / "collected", "wanda")
    export_imatrix(collected.directory, tmp_path / "a.gguf")
    import_imatrix(tmp_path / "a.gguf", mixtral, tmp_path / "imported")
    imported = Statistics(tmp_path / "imported")
    assert imported.manifest["arrays"] == collected.manifest["arrays"]
    assert imported.manifest["modules"] == collected.manifest["modules"]
    assert np.array_equal(imported.routed_tokens(), collected.routed_tokens())
    for group, names in collected.manifest["arrays"].items():
        for name in names:
            before, after = (one.layer_values(1, group, name) for one in (collected, imported))
            assert after.dtype == before.dtype, (group, name)
            assert after.ndim == before.ndim
    recipe = read_recipe({"attention": {"method": "wanda"}, "mlp": {"method": "wanda"}}, "r")
    before, after = (compute_factors(one, recipe) for one in (collected, imported))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-6, err_msg=name)


EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
LARGE = 2**24
ROUTED = {
    "one token too few": ([1000, 500, 500, 500, 571], N_TOKENS, "experts 0 to 4: {gate} counts 3071 tokens together"),
    "one too many": ([1000, 500, 500, 500, 573], N_TOKENS, "experts 0 to 4: {gate} counts 3073 tokens together"),
    "each of all": ([N_TOKENS] * 5, N_TOKENS, "expected 3072: 2 experts for each of 1536"),
    "one of more than all": ([1537, 1535, 0, 0, 0], N_TOKENS, "expert 0: {gate} counts 1537 tokens in one expert"),
    "possible": ([1536, 1536, 0, 0, 0], N_TOKENS, None),
    "largest without rounding": ([LARGE - 1, LARGE - 2, 0, 0, 1], LARGE - 1, None),
    "one too few without rounding": ([LARGE - 1, LARGE - 2, 0, 0, 0], LARGE - 1, "counts 33554429 tokens together"),
    "rounded to fours": ([3 * LARGE, 3 * LARGE + 4, 0, 0, 0], 3 * LARGE + 4, None),
    "more than rounding": ([3 * LARGE, 2 * LARGE, 0, 0, 0], 3 * LARGE, "expected 100663296: 2 experts for each"),
}


@pytest.mark.parametrize("case", ROUTED)
def test_counts_of_experts_are_those_of_a_router_that_chooses_two(mixtral, tmp_path, case):
    counts, n_tokens, message = ROUTED[case]
    tensors = tensors_of("mixtral")
    for name in tensors:
        if name.endswith("counts") and "exps" not in name:
            tensors[name][:] = n_tokens
        elif name.endswith("counts"):
            layer = int(name.split(".")[1])
            tensors[name][:, 0] = counts if layer else [n_tokens, n_tokens, 0, 0, 0]
            tensors[name.replace("counts", "in_sum2")][tensors[name][:, 0] == 0] = 0
    path = write_by_gguf(tmp_path / "a.gguf", tensors)
    if message is None:
        import_imatrix(path, mixtral, tmp_path / "out")
        assert Statistics(tmp_path / "out").routed_tokens()[1].tolist() == counts
        return
    told = message.format(gate="blk.1.ffn_gate_exps.weight")
    with pytest.raises(MismatchError, match=re.escape(f"{path}: layer 1, ") + ".*" + re.escape(told)):
        import_imatrix(path, mixtral, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_expert_through_which_fewer_tokens_leave_than_enter_is_refused(mixtral, tmp_path):
    tensors = tensors_of("mixtral")
    down = tensors["blk.0.ffn_down_exps.weight.counts"]
    down[[2, 4], 0] += [-1, 1]  # together as many as before
    told = (
        rf"layer 0, expert 2: blk\.0\.ffn_gate_exps\.weight counts {down[2, 0] + 1:.0f} tokens, "
        rf"blk\.0\.ffn_down_exps\.weight {down[2, 0]:.0f}"
    )
    with pytest.raises(MismatchError, match=told):
        import_imatrix(write_by_gguf(tmp_path / "a.gguf", tensors), mixtral, tmp_path / "out")


def test_an_expert_without_tokens_is_imported_told_and_never_scored(mixtral, tmp_path):
    tensors = tensors_of("mixtral")
    for name in EXPERTS:
        tensors[f"blk.1.{name}.weight.in_sum2"][3] = 0
        tensors[f"blk.1.{name}.weight.counts"][:, 0] = [N_TOKENS, N_TOKENS - 400, 300, 0, 100]
    routers = [pair(f"blk.{layer}.ffn_gate_inp.weight", np.ones((1, 24)), [N_TOKENS]) for layer in range(N_LAYERS)]
    path = write_by_gguf(tmp_path / "a.gguf", {**tensors, **routers[0], **routers[1]})
    command = ["import-imatrix", str(path), "--model", str(mixtral.directory), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "1 experts saw no token and cannot be scored" in done.output
    assert "left out, as no module that is pruned has them: 2 tensors or entries" in done.output
    statistics = Statistics(tmp_path / "out")
    assert statistics.tap(1, "mlp_in.3", None).n == 0
    with pytest.raises(DegenerateError, match="the router sent no calibration token to this expert"):
        compute_factors(statistics, read_recipe({"attention": {"method": "none"}, "mlp": {"method": "wanda"}}, "r"))
    export_imatrix(tmp_path / "out", tmp_path / "back.gguf")
    back = read_by_gguf(tmp_path / "back.gguf")[1]
    assert {name: content for name, (_, content) in back.items()} == {
        name: values.tobytes() for name, values in tensors.items()
    }


def test_one_count_for_all_experts_is_refused(mixtral, tmp_path):
    tensors = tensors_of("mixtral")
    name = "blk.0.ffn_gate_exps.weight"  # as llama-imatrix writes what it read from a .dat file
    flat = pair(name, tensors[f"{name}.in_sum2"].reshape(1, -1), [N_TOKENS])
    path = write_by_gguf(tmp_path / "a.gguf", {**tensors, **flat})
    message = r"has 1 x 120 sums, .* needs 5 x 24 .*Tokens of each expert are not known: was it converted from a \.dat"
    with pytest.raises(MismatchError, match=message):
        import_imatrix(path, mixtral, tmp_path / "out")


def test_more_tokens_in_an_expert_than_in_all_are_refused(mixtral, tmp_path):
    tensors = tensors_of("mixtral")
    for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        tensors[f"blk.0.{name}.weight.counts"][2] = N_TOKENS + 1
    with pytest.raises(MismatchError, match=f"counts {N_TOKENS + 1} tokens in one expert, of {N_TOKENS} in all"):
        import_imatrix(write_by_gguf(tmp_path / "a.gguf", tensors), mixtral, tmp_path / "out")


def test_imported_statistics_do_not_merge_and_nothing_is_fitted_on_them(llama, tmp_path):
    path = write_by_gguf(tmp_path / "a.gguf", TENSORS)
    for name in ("one", "two"):
        import_imatrix(path, llama, tmp_path / name)
    with pytest.raises(MismatchError, match="does not know its calibration tokens"):
        merge_artifacts([tmp_path / "one", tmp_path / "two"], tmp_path / "merged")
    options = {"dtype": "float32", "documents_per_batch": 4, "profile": "wanda", "classes": 0}
    options["topics"] = {"micro_topics": 0, "iterations": 4, "seed": 0}
    with pytest.raises(MismatchError, match="propagation imatrix"):
        fitted_on(tmp_path / "one", llama, CollectParams.model_validate(options))


def test_statistics_behind_pruned_layers_are_not_exported(finished_project, tmp_path):
    behind = finished_project.artifacts / "sequential/wanda/50pct"
    with pytest.raises(MismatchError, match="was measured behind layers that were pruned already"):
        export_imatrix(behind, tmp_path / "out.gguf")


def test_a_sum_that_float32_cannot_hold_is_refused(tmp_path):
    layer = "model.layers.0"
    modules = [
        artifacts.module(f"{layer}.self_attn.{name}_proj", "attention", (2, 2), "attn_in", f"{name}_out", "row")
        for name in "qkv"
    ]
    modules += [artifacts.module(f"{layer}.self_attn.o_proj", "attention", (2, 2), "attn_ctx", "attn_ctx", "column")]
    modules += [
        artifacts.module(f"{layer}.mlp.{name}_proj", "mlp", (2, 2), "mlp_in", "neuron", "row")
        for name in ("gate", "up")
    ]
    modules += [artifacts.module(f"{layer}.mlp.down_proj", "mlp", (2, 2), "mlp_mid", "neuron", "column")]
    sums = {(tap, "sum_sq"): [[1.0, 2.0], [3.0, 3e38]] for tap in ("attn_in", "attn_ctx", "mlp_in", "mlp_mid")}
    sums["mlp_mid", "sum_sq"] = [[1.0, 3e38], [3.0, 3e38]]
    artifacts.statistics(tmp_path, sums, modules, profile="wanda")
    with pytest.raises(NotFiniteError, match=r"layer 0, tap 'mlp_mid': a sum of squares is 6e\+38, more than float32"):
        export_imatrix(tmp_path / "artifact", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_run_does_not_reuse_imported_statistics(tiny_model, tiny_texts, tmp_path):
    fetch_model({"source": "path", "path": str(tiny_model)}, tmp_path / "model")
    import_imatrix(write_by_gguf(tmp_path / "a.gguf", TENSORS), open_model(tmp_path / "model"), tmp_path / "out")
    flags = {"model": tiny_model, "text": tiny_texts / "calibration.jsonl", "statistics": tmp_path / "out"}
    flags |= {
        "prune_method": "wanda",
        "nsamples": 12,
        "seqlen": 16,
        "dtype": "float32",
        "cache_dir": tmp_path / "cache",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    done = CliRunner().invoke(main, ["run", *words])
    assert done.exit_code == 1
    assert "dtype is unknown, the run has float32; propagation is imatrix, the run has dense" in done.output
