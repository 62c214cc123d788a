"""The stages on a tiny model, one after the other, and what they refuse."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronrank.comparison import perplexity_ratio
from neuronrank.files import read_metadata, sha256_file, write_json, write_sealed_json, write_tensors
from neuronrank.losses import read_losses
from neuronrank.mask_store import MaskFile
from neuronrank.windows import read_windows
from tests import naive
from tests.imports import ROOT
from tests.project import STAGES, tiny_params


def metrics(project, name):
    return json.loads((project.metrics / name).read_text())


def test_masks_are_those_of_naive_scores(finished_project, tiny_model):
    tokens = read_windows(finished_project.artifacts / "tokens/calibration/windows.safetensors").token_ids
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()
    taps = naive.activations(model, tokens, [0, 1])
    masks = MaskFile(finished_project.mask("hybrid", "50pct"))
    assert len(masks.weights) == 14
    for index in (0, 1):
        attention, mlp = model.model.layers[index].self_attn, model.model.layers[index].mlp
        neuron = naive.tfidf_factor(taps[index, "neuron"], 1, 1, 0.6)
        expected = {
            "self_attn.q_proj": (attention.q_proj, naive.wanda_factor(taps[index, "attn_in"])[None, :], "row"),
            "self_attn.k_proj": (attention.k_proj, naive.wanda_factor(taps[index, "attn_in"])[None, :], "row"),
            "self_attn.v_proj": (attention.v_proj, naive.wanda_factor(taps[index, "attn_in"])[None, :], "row"),
            "self_attn.o_proj": (attention.o_proj, naive.wanda_factor(taps[index, "attn_ctx"])[None, :], "row"),
            "mlp.gate_proj": (mlp.gate_proj, neuron[:, None], "module"),
            "mlp.up_proj": (mlp.up_proj, neuron[:, None], "module"),
            "mlp.down_proj": (mlp.down_proj, neuron[None, :], "module"),
        }
        for path, (linear, factor, group) in expected.items():
            scores = np.abs(linear.weight.detach().numpy()) * factor
            found = masks.keep(f"model.layers.{index}.{path}.weight")
            np.testing.assert_array_equal(found, naive.mask(scores, 0.5, group), err_msg=path)


def test_sparsity_has_three_named_denominators(finished_project, tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    linears = sum(p.numel() for n, p in model.named_parameters() if "_proj" in n)
    removed = metrics(finished_project, "prune/wanda/50pct.json")["removed"]
    shares = MaskFile(finished_project.mask("wanda", "50pct")).header["sparsity"]
    assert removed == linears // 2
    assert shares == {
        "selected": 0.5,
        "linears": 0.5,
        "model": pytest.approx(removed / sum(p.numel() for p in model.parameters())),
    }


def test_selection_changes_the_denominators(project, tiny_model, tiny_texts):
    params = tiny_params(tiny_model, tiny_texts)
    params["patterns"]["last"] = {"rule": "unstructured", "sparsity": 0.25, "attention": False, "pruning_last": 1}
    project.write_params(params)
    assert project.prune("wanda", "last").exit_code == 0
    masks = MaskFile(project.mask("wanda", "last"))
    assert {name.removeprefix("model.layers.1.mlp.") for name in masks.weights} == {
        f"{n}_proj.weight" for n in ("gate", "up", "down")
    }
    mlp, attention = 3 * 24 * 40, 24 * 32 * 2 + 24 * 16 * 2
    assert masks.header["sparsity"]["selected"] == 0.25
    assert masks.header["sparsity"]["linears"] == pytest.approx(0.25 * mlp / (2 * (mlp + attention)))


def test_losses_are_those_of_a_plain_loop(finished_project, tiny_model):
    windows = read_windows(finished_project.artifacts / "tokens/evaluation/wiki.safetensors").token_ids
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()
    expected = []
    for window in windows:
        with torch.no_grad():
            log_probabilities = model(torch.tensor(window[None]).long()).logits[0].log_softmax(-1).numpy()
        expected.append(-sum(log_probabilities[t, window[t + 1]] for t in range(15)) / 15)
    found = read_losses(finished_project.artifacts / "losses/dense.safetensors")["wiki"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert metrics(finished_project, "eval/dense.json")["perplexity"]["wiki"] == pytest.approx(
        math.exp(np.mean(expected)), abs=2e-3
    )


def test_the_masked_model_is_what_is_measured(finished_project, tiny_model):
    windows = read_windows(finished_project.artifacts / "tokens/evaluation/news.safetensors").token_ids
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    masks = MaskFile(finished_project.mask("wanda", "50pct"))
    state = model.state_dict()
    for name in masks.weights:
        state[name] *= torch.from_numpy(masks.keep(name))
    ids = torch.tensor(windows).long()
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    found = read_losses(finished_project.artifacts / "losses/wanda/50pct.safetensors")["news"]
    assert found.mean() == pytest.approx(loss, rel=1e-5)


def test_a_ratio_is_of_paired_windows():
    reference = np.array([3.0, 5.0, 4.0, 9.0, 2.0, 7.0])
    shift = np.array([0.20, 0.21, 0.19, 0.22, 0.18, 0.20])
    ratio = perplexity_ratio(reference + shift, reference, seed=0)
    assert ratio.value == pytest.approx(math.exp(0.2))
    # unpaired, windows that differ by seven nats would make the interval hundreds of times wider
    assert math.exp(0.18) < ratio.low < math.exp(0.2) < ratio.high < math.exp(0.22)
    same = perplexity_ratio(reference, reference, seed=0)
    assert (same.value, same.low, same.high) == (1, 1, 1)


def test_stages_write_the_same_bytes_twice(finished_project, project):
    shutil.rmtree(project.artifacts)
    project.run_all()
    compared = 0
    for path in sorted(project.artifacts.rglob("*")):
        if path.is_file() and "report" not in path.parts:  # it shows seconds
            twin = finished_project.artifacts / path.relative_to(project.artifacts)
            assert sha256_file(path) == sha256_file(twin), path
            compared += 1
    assert compared > 40


def test_export_loads_with_plain_transformers_and_changes_nothing_else(finished_project, tiny_model, tmp_path):
    from click.testing import CliRunner

    from neuronrank.cli import main

    out = tmp_path / "pruned"
    mask = finished_project.mask("wanda", "50pct")
    command = ["export", "--model", str(finished_project.artifacts / "model"), "--mask", str(mask), "--out", str(out)]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    base = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    pruned = AutoModelForCausalLM.from_pretrained(out).state_dict()
    masks = MaskFile(mask)
    assert base.keys() == pruned.keys()
    for name, weight in base.items():
        expected = torch.where(torch.from_numpy(masks.keep(name)), weight, 0.0) if name in masks.weights else weight
        assert torch.equal(pruned[name], expected), name
    AutoTokenizer.from_pretrained(out)
    for path in tiny_model.iterdir():
        assert (out / path.name).stat().st_size == path.stat().st_size
        if path.suffix != ".safetensors":
            assert sha256_file(out / path.name) == sha256_file(path)
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 1
    assert "already exists" in again.output


def test_the_report_holds_every_result_and_needs_no_network(finished_project):
    report = finished_project.artifacts / "report"
    page = (report / "index.html").read_text()
    table = (report / "table.md").read_text()
    for recipe in ("dense", "wanda", "hybrid"):
        ppl = metrics(finished_project, "eval/dense.json" if recipe == "dense" else f"eval/{recipe}/50pct.json")
        for text in ("wiki", "news"):
            assert f"{ppl['perplexity'][text]:.2f}" in table
            assert f"<td>{ppl['perplexity'][text]:.2f}</td>" in page
    assert page.count("<svg") == 3
    for address in ("<script", "src=", "@import", "<link"):
        assert address not in page
    lines = (report / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * (1 + 3)
    assert [line.split(",")[2] for line in lines[1:5]] == ["dense", "wanda", "hybrid", "wanda_sequential"]


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_stage_has_help_with_an_example(finished_project, stage):
    from click.testing import CliRunner

    shown = CliRunner().invoke(STAGES[stage], ["--help"])
    assert shown.exit_code == 0
    assert f"Example:\n    python -m stages.{stage}" in shown.output


def refused(result, *messages):
    """Exit code 1, one message, no traceback."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    for message in messages:
        assert message in result.output


def snapshot(project):
    return {path: sha256_file(path) for path in project.root.rglob("*") if path.is_file() and path != project.params}


def change(project, tiny_model, tiny_texts, section, **values):
    params = tiny_params(tiny_model, tiny_texts)
    params[section] = {**params[section], **values}
    project.write_params(params)


def test_more_windows_than_text_is_refused(project, tiny_model, tiny_texts):
    before = snapshot(project)
    # With another seed the calibration windows would differ: a half-done stage would show.
    change(project, tiny_model, tiny_texts, "prepare", seed=5, evaluation_windows=10_000)
    refused(project.prepare(), "evaluation text 'news': holds")
    change(project, tiny_model, tiny_texts, "prepare", calibration_windows=10_000)
    refused(project.prepare(), "calibration text: holds", "10000 were asked for")
    change(project, tiny_model, tiny_texts, "prepare", window_tokens=5000)
    refused(project.prepare(), "calibration text: holds 0 windows of 5000 tokens")
    assert snapshot(project) == before


def test_faults_of_a_section_come_together(project, tiny_model, tiny_texts):
    change(project, tiny_model, tiny_texts, "prepare", window_tokens="long", seeds=1, calibration_windows=0)
    refused(
        project.prepare(),
        "prepare.window_tokens: found 'long'",
        "prepare.seeds: unknown key, did you mean 'seed'?",
        "prepare.calibration_windows: found 0",
    )


def test_unknown_names_suggest_the_nearest(project):
    refused(project.score("wnada"), "recipes: no 'wnada', did you mean 'wanda'?; there are: wanda, hybrid")
    refused(project.prune("wanda", "50pc"), "patterns: no '50pc', did you mean '50pct'?")


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, "half", None])
def test_sparsity_outside_its_range_is_refused(project, tiny_model, tiny_texts, sparsity):
    before = snapshot(project)
    change(project, tiny_model, tiny_texts, "patterns", **{"50pct": {"rule": "unstructured", "sparsity": sparsity}})
    refused(project.prune("wanda", "50pct"), "patterns.50pct.sparsity")
    assert snapshot(project) == before


def test_columns_that_m_does_not_divide(project, tiny_model, tiny_texts):
    before = snapshot(project)
    change(project, tiny_model, tiny_texts, "patterns", odd={"rule": "n_of_m", "keep_n": 2, "group_m": 5})
    refused(project.prune("wanda", "odd"), "model.layers.0.self_attn.q_proj: 24 input columns are not divisible")
    assert snapshot(project) == before


@pytest.fixture
def other_model(tiny_model, tmp_path):
    """The tiny model with one weight changed."""
    directory = shutil.copytree(tiny_model, tmp_path / "other")
    shard = sorted(directory.glob("model-*.safetensors"))[-1]
    tensors = load_file(shard)
    tensors[sorted(tensors)[0]].view(-1)[0] += 1
    save_file(tensors, shard, metadata={"format": "pt"})
    return directory


def test_scores_and_masks_of_another_model_are_refused(project, other_model, tiny_texts):
    params = tiny_params(other_model, tiny_texts)
    project.write_params(params)
    assert project.fetch("model").exit_code == 0
    before = snapshot(project)
    refused(project.prune("wanda", "50pct"), "scores of 'wanda': made for model", "Run: dvc repro collect score")
    refused(project.eval("wanda", "50pct"), "50pct.safetensors: made for model")
    assert snapshot(project) == before


def test_tokens_of_another_tokenizer_are_refused(project, tiny_model, tiny_texts, tmp_path):
    directory = shutil.copytree(tiny_model, tmp_path / "other")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["extra"] = 64
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    project.write_params(tiny_params(directory, tiny_texts))
    assert project.fetch("model").exit_code == 0
    before = snapshot(project)
    refused(project.collect(), "tokens/calibration: made by tokenizer", "Run: dvc repro prepare")
    refused(project.eval(), "made by tokenizer")
    assert snapshot(project) == before


def test_a_tokenizer_larger_than_the_model_does_not_belong(project, tiny_texts, tiny_model, tmp_path):
    directory = shutil.copytree(tiny_model, tmp_path / "small")
    config = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", {**config, "vocab_size": 20})
    project.write_params(tiny_params(directory, tiny_texts))
    assert project.fetch("model").exit_code == 0
    refused(project.prepare(), "its model knows 20 tokens", "The tokenizer does not belong to the model")


def test_another_architecture_than_stated_is_refused(project, tiny_model, tiny_texts):
    change(project, tiny_model, tiny_texts, "model", architecture="mistral")
    before = snapshot(project)
    refused(project.fetch("model"), "config.json says model_type 'llama'", "Set model.architecture: llama")
    assert snapshot(project) == before


def test_incomplete_statistics_are_refused(project):
    chunk = sorted((project.statistics / "taps.zarr/mlp_in/wanda_sum_sq/c").rglob("*"))[-1]
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    before = snapshot(project)
    refused(project.score("wanda"), f"{chunk}: corrupt, it has", "Run: dvc repro collect")
    chunk.unlink()
    refused(project.score("wanda"), f"{chunk}: missing, although the manifest lists it")
    counts = sorted((project.statistics / "taps.zarr/neuron/df_count/c").rglob("*"))[-1]
    counts.unlink()
    refused(project.score("hybrid"), f"{counts}: missing, although the manifest lists it")
    (project.statistics / "manifest.json").unlink()
    refused(project.score("wanda"), "manifest.json: not found. Run: dvc repro collect")
    after = snapshot(project)
    for recipe in ("wanda", "hybrid"):
        assert after[project.scores(recipe)] == before[project.scores(recipe)]


def test_a_mask_whose_bits_and_header_disagree_is_refused(project):
    path = project.mask("wanda", "50pct")
    content = bytearray(path.read_bytes())
    content[-3] ^= 0b00010000
    path.write_bytes(content)
    refused(project.eval("wanda", "50pct"), "it changed after it was written. Make it again: dvc repro prune")
    header = read_metadata(path, "x")
    write_tensors(path, load_numpy(path), header)  # with a seal of its own
    refused(project.eval("wanda", "50pct"), "removes", "its header says")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "1.00"), (13.96, "14.0"), (101.4, "101"), (0.04567, "0.0457"), (2024.4, "2024"), (9.999, "10.00")],
)
def test_ratios_have_three_digits(value, shown):
    from neuronrank.reporting.tables import three_digits

    assert three_digits(value) == shown


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_a_stage_with_one_message_and_keeps_the_earlier_output(project, tiny_disk):
    shutil.copytree(project.statistics, tiny_disk / "statistics")
    before = {path: sha256_file(path) for path in tiny_disk.rglob("*") if path.is_file()}
    assert len(before) > 40
    free = shutil.disk_usage(tiny_disk).free
    (tiny_disk / "filler").write_bytes(b"x" * (free - 60_000))
    inputs = ["--model", str(project.artifacts / "model"), "--tokens", str(project.artifacts / "tokens/calibration")]
    done = project.stage("collect", *inputs, "--out", str(tiny_disk / "statistics"), metrics="collect.json")
    refused(done, "statistics: cannot write: No space left on device")
    assert {path: sha256_file(path) for path in before} == before
    assert "What was done is kept in" in done.output
    (tiny_disk / "filler").unlink()
    again = project.stage("collect", *inputs, "--out", str(tiny_disk / "statistics"), metrics="collect.json")
    assert again.exit_code == 0, again.output
    assert {path: sha256_file(path) for path in tiny_disk.rglob("*") if path.is_file()} == before


def rewrite(directory, change):
    """Rewrite the shards of a model with changed tensors."""
    for shard in sorted(directory.glob("model-*.safetensors")):
        tensors = load_file(shard)
        change(tensors)
        save_file(tensors, shard, metadata={"format": "pt"})


@pytest.fixture
def movable(project, tiny_model, tiny_texts, tmp_path):
    """The finished project on a model directory that may be damaged, fetched from there."""
    directory = shutil.copytree(tiny_model, tmp_path / "movable")
    project.write_params(tiny_params(directory, tiny_texts))
    assert project.fetch("model").exit_code == 0
    return directory


def test_weights_that_changed_after_fetching_are_refused_by_every_reader(project, movable, tmp_path):
    from click.testing import CliRunner

    from neuronrank.cli import main

    rewrite(movable, lambda tensors: [tensors[name].add_(1) for name in tensors if "down_proj" in name])
    before = snapshot(project)
    message = "The weights in"
    refused(project.collect(), "down_proj.weight: sha256 is", message)
    refused(project.prune("wanda", "50pct"), message)
    refused(project.eval(), message)
    out = tmp_path / "out"
    command = ["export", "--model", str(project.artifacts / "model"), "--mask", str(project.mask("wanda", "50pct"))]
    refused(CliRunner().invoke(main, [*command, "--out", str(out)]), message)
    assert not out.exists()
    assert snapshot(project) == before


def test_old_checkpoints_with_rotary_frequencies_are_collected(project, movable):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    index = movable / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = sorted(movable.glob("model-*.safetensors"))[0]
    save_file({**load_file(shard), name: torch.ones(4)}, shard, metadata={"format": "pt"})
    write_json(index, {**content, "weight_map": {**content["weight_map"], name: shard.name}})
    assert project.fetch("model").exit_code == 0
    done = project.collect()
    assert done.exit_code == 0, done.output


def test_a_missing_tensor_is_refused_and_never_made_up(project, movable):
    gone = "model.layers.1.mlp.up_proj.weight"
    index = movable / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    rewrite(movable, lambda tensors: tensors.pop(gone, None))
    write_json(index, {**content, "weight_map": {k: v for k, v in content["weight_map"].items() if k != gone}})
    assert project.fetch("model").exit_code == 0
    refused(project.collect(), "has no tensor for")
    refused(project.eval(), f"has no tensor for {gone!r}")


def test_two_copies_of_the_weights_are_refused(project, movable):
    tensors = {}
    for shard in movable.glob("model-*.safetensors"):
        tensors |= load_file(shard)
    save_file(tensors, movable / "model.safetensors", metadata={"format": "pt"})
    refused(project.fetch("model"), "has both model.safetensors and model.safetensors.index.json")


def test_tokenizer_settings_belong_to_the_tokenizer(project, movable):
    settings = movable / "tokenizer_config.json"
    write_json(settings, {**json.loads(settings.read_text()), "add_bos_token": True})
    refused(project.prepare(), "tokenizer is", "Run: dvc repro --force fetch@model")
    before = json.loads((project.artifacts / "model/model.json").read_text())["tokenizer_sha256"]
    assert project.fetch("model").exit_code == 0
    assert json.loads((project.artifacts / "model/model.json").read_text())["tokenizer_sha256"] != before


def test_losses_of_other_windows_are_never_paired(project, tiny_model, tiny_texts):
    change(project, tiny_model, tiny_texts, "prepare", window_tokens=15)
    assert project.prepare().exit_code == 0
    before = snapshot(project)
    refused(project.eval("wanda", "50pct"), "measured with another evaluation windows", "Run: dvc repro")
    assert snapshot(project) == before
    assert project.eval().exit_code == 0
    refused(project.report(), "50pct.safetensors and", "measured with another evaluation windows")


def test_a_sweep_of_magnitude_alone_is_reported(project, tiny_model, tiny_texts):
    magnitude = {"method": "magnitude"}
    change(project, tiny_model, tiny_texts, "recipes", magnitude={"attention": magnitude, "mlp": magnitude})
    params = yaml.safe_load(project.params.read_text())
    params["sweep"] = {"recipes": ["magnitude"], "patterns": ["50pct"]}
    params["report"]["reference"] = "magnitude"
    project.write_params(params)
    for step in (project.score("magnitude"), project.prune("magnitude", "50pct"), project.eval("magnitude", "50pct")):
        assert step.exit_code == 0, step.output
    done = project.report()
    assert done.exit_code == 0, done.output
    assert (project.artifacts / "report/factors.csv").read_text().startswith("recipe,part,layer,module")


def test_more_last_layers_than_there_are_is_refused(project, tiny_model, tiny_texts):
    last = {"rule": "unstructured", "sparsity": 0.5, "attention": False, "pruning_last": 3}
    change(project, tiny_model, tiny_texts, "patterns", last=last)
    refused(project.prune("wanda", "last"), "pruning_last 3: the model has 2 layers")


def test_a_header_that_lacks_something_is_refused(project):
    manifest = project.statistics / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["calibration"]
    write_json(manifest, content)
    refused(project.score("wanda"), "it changed after it was written. Make it again: dvc repro collect")
    write_sealed_json(manifest, content)
    refused(project.score("wanda"), "manifest.json: its header lacks calibration. Make it again: dvc repro collect")


def test_prune_says_where_a_row_factor_is_idle(project, caplog):
    import logging

    caplog.set_level(logging.INFO, logger="neuronrank")
    assert project.prune("hybrid", "2of4").exit_code == 0
    assert "in 4 of 14 modules the factor lies on rows" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system tells no peak of this program alone")
def test_the_peak_is_that_of_the_program_and_not_of_what_started_it():
    child = "from stages._command import peak_rss_mib; print(peak_rss_mib())"
    parent = f"""
import subprocess, sys
held = b"x" * (1 << 30)
print(subprocess.run([sys.executable, "-c", {child!r}], capture_output=True, text=True, check=True).stdout)
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'pipeline'}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert 10 < float(done.stdout) < 900
