"""`neuronrank run` on the tiny model: flags, reuse of statistics, what is left behind, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from neuronrank import collecting, locks, registry
from neuronrank.cli import main
from neuronrank.mask_store import MaskFile
from neuronrank.oneshot.flags import in_flags
from neuronrank.oneshot.request import Flags, read_request
from neuronrank.presets import ALIASES
from tests.test_outputs import hold


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Statistics that the runs of this file share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(tiny_model, tiny_texts, cache):
    """Run a command line on the tiny model and its text."""

    def invoke(*flags, model=tiny_model, cache=cache):
        text = str(tiny_texts / "calibration.jsonl")
        common = [
            "--model",
            str(model),
            "--text",
            text,
            "--seqlen",
            "16",
            "--dtype",
            "float32",
            "--cache_dir",
            str(cache),
        ]
        samples = [] if "--nsamples" in flags else ["--nsamples", "12"]
        return CliRunner().invoke(main, ["run", *common, *samples, *flags])

    return invoke


def refused(result, *messages):
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    for message in messages:
        assert message in result.output


SMALL = ["--neuronrank-max-classes", "10"]
BY_CLASS = [
    name for name in registry.names("scoring") if "classes" in registry.load("scoring", name).Params.model_fields
]


@pytest.mark.parametrize("method", [*sorted(set(registry.names("scoring")) - {"none"}), *ALIASES, "hybrid"])
def test_every_method_runs_and_realises_the_sparsity(run, tmp_path, method):
    flags = SMALL if method in BY_CLASS else []
    flags = [*flags, "--magnitude-multi", "0.5"] if method == "neuronrank_unstructured" else flags
    done = run("--prune_method", method, "--sparsity_ratio", "0.25", "--save", str(tmp_path / "out"), *flags)
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert abs(summary["sparsity"]["selected"] - 0.25) < 0.02
    masks = MaskFile(tmp_path / "out/mask.safetensors")
    for entry in summary["modules"]:
        kept = masks.keep(entry["weight"])
        assert kept.size - np.count_nonzero(kept) == entry["n_removed"]


def test_log_and_summary_count_the_same(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="neuronrank")
    done = run("--prune_method", "wanda", "--sparsity_type", "1:4", "--save", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert "layer 0 self_attn.q_proj: pruned 576/768" in caplog.text  # 32 x 24, three of four removed
    assert "layer 1 mlp.down_proj: pruned 720/960" in caplog.text
    assert "total: pruned" in caplog.text
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["part_counts"]["attention"] == {"removed": 3456, "weights": 4608}
    assert summary["sparsity"]["selected"] == 0.75


def test_a_second_run_performs_no_forward_and_says_so(run, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", logger="neuronrank")
    flags = ["--prune_method", "hybrid", "--idf-exp"]
    assert run(*flags, "1.5", "--save", str(tmp_path / "one"), cache=tmp_path / "cache").exit_code == 0
    assert "a forward pass over 12 windows of 16 tokens" in caplog.text
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_a, **_k: pytest.fail("a model was run"))
    caplog.clear()
    assert run(*flags, "3.0", "--save", str(tmp_path / "two"), cache=tmp_path / "cache").exit_code == 0
    assert "calibration: no forward pass, statistics of" in caplog.text
    one, two = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert (one["calibration"]["forward_pass"], two["calibration"]["forward_pass"]) == (True, False)
    assert (tmp_path / "one/mask.safetensors").read_bytes() != (tmp_path / "two/mask.safetensors").read_bytes()


def test_a_run_that_waited_for_another_one_takes_the_statistics_that_it_left(run, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", logger="neuronrank")
    cache, aside = tmp_path / "cache", tmp_path / "aside"
    assert run("--prune_method", "wanda", cache=cache).exit_code == 0
    (collected,) = (path.parent for path in cache.glob("statistics/*/manifest.json"))
    collected.rename(aside)
    monkeypatch.setattr(collecting, "collect_statistics", lambda *_a: pytest.fail("it was collected again"))
    with hold(collected) as other:

        def put_back(*words):
            if "waiting" in words[0]:  # the other process has what it collected take its place, and ends
                aside.rename(collected)
                other.stdin.close()

        monkeypatch.setattr(locks.log, "info", put_back)
        done = run("--prune_method", "wanda", "--save", str(tmp_path / "out"), cache=cache)
    assert done.exit_code == 0, done.output
    assert not json.loads((tmp_path / "out/summary.json").read_text())["calibration"]["forward_pass"]
    assert not list(cache.rglob(".*"))


def test_fewer_samples_are_taken_from_a_larger_artifact_where_the_method_can(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="neuronrank")
    assert run("--prune_method", "wanda", cache=tmp_path / "cache").exit_code == 0
    caplog.clear()
    assert run("--prune_method", "wanda", "--nsamples", "5", cache=tmp_path / "cache").exit_code == 0
    assert "no forward pass" in caplog.text
    caplog.clear()
    assert run("--prune_method", "neuronrank_old", "--nsamples", "5", cache=tmp_path / "cache").exit_code == 0
    assert "a forward pass over 5 windows" in caplog.text


def test_other_topics_are_found_anew(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="neuronrank")
    topics = ["--prune_method", "neuronrank_tfidf", "--nr-tfidf-mode", "topic", "--nr-tfidf-k"]
    assert run(*topics, "150", cache=tmp_path / "cache").exit_code == 0
    caplog.clear()
    assert run(*topics, "20", cache=tmp_path / "cache").exit_code == 0  # 128 micro-topics, not 150
    assert "a forward pass over 12 windows" in caplog.text
    caplog.clear()
    assert run("--prune_method", "hybrid", cache=tmp_path / "cache").exit_code == 0
    assert "no forward pass" in caplog.text


def test_another_seed_or_text_is_calibrated_anew(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="neuronrank")
    assert run("--prune_method", "wanda", cache=tmp_path / "cache").exit_code == 0
    caplog.clear()
    assert run("--prune_method", "wanda", "--seed", "1", cache=tmp_path / "cache").exit_code == 0
    assert "a forward pass over 12 windows" in caplog.text


def test_the_saved_model_has_the_masked_zeros(run, tmp_path, tiny_model):
    out, model = tmp_path / "out", tmp_path / "model"
    done = run("--prune_method", "wanda", "--save", str(out), "--save_model", str(model))
    assert done.exit_code == 0, done.output
    pruned = AutoModelForCausalLM.from_pretrained(model).state_dict()
    dense = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    masks = MaskFile(out / "mask.safetensors")
    for name in masks.weights:
        keep = torch.from_numpy(masks.keep(name))
        assert torch.equal(pruned[name], dense[name] * keep)


def test_a_structured_model_is_smaller(run, tmp_path):
    model = tmp_path / "model"
    done = run("--prune_method", "neuronrank_old", "--sparsity_type", "structured", "--save_model", str(model))
    assert done.exit_code == 0, done.output
    assert AutoModelForCausalLM.from_pretrained(model).config.intermediate_size == 20


def test_perplexity_is_measured_on_request(run, tiny_texts, tmp_path):
    flags = ["--prune_method", "magnitude", "--eval_perplexity", "--eval-text", str(tiny_texts / "wiki.jsonl")]
    done = run(*flags, "--save", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    measured = json.loads((tmp_path / "out/summary.json").read_text())["measured"]["perplexity"]["text"]
    assert set(measured) == {"dense", "pruned"}
    assert measured["dense"] != measured["pruned"]


def test_a_tied_head_is_refused_unless_untied_on_request(run, tmp_path):
    refused(run("--prune_method", "wanda", "--nr-prune-lm-head"), "lm_head: tied to model.embed_tokens.weight")
    done = run("--prune_method", "wanda", "--nr-prune-lm-head", "--untie-lm-head", "--save", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert "lm_head" in json.loads((tmp_path / "out/summary.json").read_text())["part_counts"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["wnada"], "--prune_method 'wnada': unknown, did you mean 'wanda'?"),
        (["wanda", "--tf-exp", "2"], "--prune_method wanda: has no parameter 'tf_exp'; it has: weight_exp"),
        (["wanda", "--sparsity_type", "2-4"], "--sparsity_type '2-4': expected unstructured, structured or n:m"),
        (
            ["wanda", "--sparsity_type", "2:4", "--sparsity_ratio", "0.6"],
            "--sparsity_type: keeping 2 of 4 removes 0.5, sparsity says 0.6",
        ),
        (["wanda", "--sparsity_type", "4:2"], "--sparsity_type: keep_n 4 is more than group_m 2"),
        (["wanda", "--sparsity_type", "structured"], "method 'wanda' of the MLP has no neuron score"),
        (["neuronrank", "--sparsity_type", "unstructured", *SMALL], "of mlp ranks whole neurons"),
        (["wanda", "--sparsity_ratio", "1.5"], "Error: --sparsity_ratio: found 1.5; expected a share in [0, 1)\n"),
        (
            ["neuronrank_tfidf", "--nr_q_active", "1.5"],
            "Error: --nr-q-active: found 1.5; input should be less than 1\n",
        ),
        (["wanda_idf", "--threshold", "abc"], "Error: --threshold: found 'abc'; input should be 'pooled', 'relative'"),
        (["wanda", "--set", "nsamples=0"], "Error: --prune_method wanda: nsamples: found 0; input should be greater"),
        (["neuronrank_tfidf", "--pruning_last", "1", "--nr_skip_mlp"], "masks and --pruning_last prune the MLP only"),
        (["neuronrank_old", "--nr-skip-mlp"], "prunes attention when told so, add --nr-include-attention"),
        (["wanda", "--statistics", "tests"], "--statistics tests/manifest.json: not found. Name statistics that fit"),
        (["wanda", "--hybrid-mlp-method", "neuronrank_old"], "only with --prune_method hybrid"),
        (["wanda", "--preset", "balanced"], "presets are of neuronrank_tfidf"),
        (["neuronrank_tfidf", "--preset", "mild"], "known: conservative, balanced, aggressive"),
        (["wanda_idf", "--threshold", "0.1"], "a number is the theta of neuronrank_old"),
        (["wanda", "--set", "smooth"], "expected NAME=VALUE"),
        (["neuronrank_tfidf", "--set", "method=wanda"], "method is given by a flag already"),
        (["neuronrank_tfidf", "--idf-exp", "2", "--set", "idf_exp=3"], "idf_exp is given by a flag already"),
        (["hybrid", "--hybrid-mlp-method", "none"], "expected neuronrank_tfidf or neuronrank_old"),
        (["wanda", "--save", "out", "--save_model", "out/model"], "one lies in the other"),
        (["wanda_idf", "--set", "smoth=true"], "has no parameter 'smoth'"),
        (["wanda", "--nr-include-attention", "--nr-skip-attention"], "contradict each other"),
        (["neuronrank_tfidf", "--nr-tfidf-mode", "topic", "--nr-tfidf-k", "1000"], "there are 192 calibration tokens"),
        (["wanda", "--pruning_last", "3"], "pruning_last 3: the model has 2 layers"),
        (["wanda", "--nsamples", "100000"], "100000 were asked for"),
    ],
)
def test_bad_flags_are_named(run, flags, message):
    refused(run("--prune_method", *flags), message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["wanda_idf", "--profile", "lean"],
            "keeps no attn_in/n_above_pooled, which is needed. Give --profile standard",
        ),
        (
            ["neuronrank_tfidf", "--nr-axis", "gate_pre"],
            "keeps no gate_pre/tf_sum, which is needed. Give --profile full",
        ),
        (["wanda", "--set", "nsamples=13"], "holds 12 documents, nsamples 13 were asked for. Raise --nsamples"),
        (["wanda", "--nr-prune-lm-head"], "ask for an own copy: --untie-lm-head"),
        (["wanda", "--pruning_last", "3"], "pruning_last 3: the model has 2 layers"),
        (["neuronrank_tfidf", "--nr-skip-mlp", "--nr-skip-attention"], "nothing is left to prune"),
        (
            ["neuronrank_old", "--threshold", "0.05"],
            "keeps no neuron/sketch_negative_count, which is needed. Give --profile",
        ),
        (["neuronrank_fisher", "--nr-include-attention"], "neuronrank_fisher scores the MLP only"),
        (["hybrid", "--nr-include-attention", "--nr-skip-attention"], "-attention contradict each other"),
        (["neuronrank_tfidf", "--nr-tfidf-k", "8"], "topics does nothing with mode 'doc'"),
        (["neuronrank_old", "--nr-q-active", "0.5"], "q_active does nothing with threshold 'theta'"),
        (["wanda_idf", "--threshold", "sign", "--set", "kappa=2.0"], "kappa does nothing with threshold 'sign'"),
        (["wanda_spiky", "--set", "idf_max=2.0"], "idf_max does nothing with idf_exp 0; leave it out, or set idf_exp"),
        (["wanda_spiky", "--threshold", "sign"], "threshold does nothing with idf_exp 0"),
        (["neuronrank_tfidf", "--set", "spike_max=5.0"], "spike_max does nothing with spikiness_exp 0"),
        (["magnitude", "--set", "smooth=["], "--set 'smooth=[': not valid YAML"),
        (["magnitude", "--eval-perplexity", "--nr-prune-lm-head"], "tied to model.embed_tokens.weight"),
        (["neuronrank_fisher", "--neuronrank-max-classes", "90"], "token classes, 90 were asked for. Lower --neuronr"),
        (
            ["neuronrank_fisher", *SMALL, "--set", "element=false", "--sparsity_type", "2:4"],
            "the score of 'neuronrank_fisher' is the same all along a row, and the pattern compares within rows",
        ),
        (["wanda", "--eval-text", "x.txt"], "--eval-text: nothing is measured on it; add --eval-perplexity"),
    ],
)
def test_what_cannot_work_is_refused_before_the_forward_pass(run, tmp_path, monkeypatch, flags, message):
    monkeypatch.setattr(collecting, "collect_statistics", lambda *_a, **_k: pytest.fail("collected"))
    result = run("--prune_method", *flags, cache=tmp_path / "cache")
    refused(result, message)
    assert "dvc" not in result.output
    assert "params.yaml" not in result.output


def test_a_place_that_cannot_be_written_is_refused_first(run, tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "collect_statistics", lambda *_a, **_k: pytest.fail("collected"))
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file/out", tmp_path / "file"):
        refused(run("--prune_method", "wanda", "--save", str(place), cache=tmp_path / "cache"), f"{tmp_path}/file")


def test_messages_name_flags_in_place_of_parameters_and_stages():
    for message, said in (
        ("x: holds 2 documents. Raise prepare.calibration_windows and run: dvc repro collect", "Raise --nsamples"),
        ("x: corrupt. Run: dvc repro collect score", "x: corrupt"),
        (
            "x: holds 9 token classes, 12 were asked for. Raise collect.classes (a, b) and run: dvc repro collect",
            "Lower",
        ),
        ("Try collect.dtype: float32", "Try --dtype float32"),
    ):
        assert said in in_flags(message)
        assert not re.search(r"dvc|collect\.|prepare\.|and$", in_flags(message))


def test_tokens_that_the_model_does_not_know_are_refused(run, tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "vocab_size": 20}))
    result = run("--prune_method", "wanda", model=tmp_path / "model", cache=tmp_path / "cache")
    refused(result, "its model knows 20 tokens")


def test_a_model_that_is_not_there(run):
    refused(run("--prune_method", "wanda", model="nowhere"), "--model nowhere: no such directory or .gguf file")


def test_an_output_that_exists_is_kept(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("kept")
    refused(run("--prune_method", "wanda", "--save", str(tmp_path / "out")), "already exists; choose another place")
    assert (tmp_path / "out/mine.txt").read_text() == "kept"


def test_statistics_that_are_named_must_fit(run, finished_project):
    given = ["--statistics", str(finished_project.statistics)]
    refused(
        run("--prune_method", "wanda", "--nsamples", "13", "--seqlen", "8", "--dtype", "bfloat16", *given),
        "--statistics",
        "dtype is float32, the run has bfloat16",
        "seqlen is 16, the run has 8",
        "holds 12 windows, the run asks for 13",
        "Name statistics that fit, or leave --statistics out",
    )


def test_what_reads_nothing_is_not_calibrated(run, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="neuronrank")
    monkeypatch.setattr(collecting, "collect_statistics", lambda *_a, **_k: pytest.fail("collected"))
    done = run("--prune_method", "magnitude", "--save", str(tmp_path / "out"), cache=tmp_path / "cache")
    assert done.exit_code == 0, done.output
    assert "calibration: none, magnitude reads no statistics" in caplog.text
    assert json.loads((tmp_path / "out/summary.json").read_text())["calibration"] == {"forward_pass": False}
    assert not (tmp_path / "cache/windows").exists()


def test_a_larger_artifact_serves_what_would_not_be_collected(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="neuronrank")
    by_gate = ["--prune_method", "neuronrank_tfidf", "--nr-axis", "gate_pre"]
    assert run(*by_gate, "--profile", "full", cache=tmp_path / "cache").exit_code == 0
    caplog.clear()
    assert run(*by_gate, cache=tmp_path / "cache").exit_code == 0
    assert "no forward pass" in caplog.text


def test_numbers_with_an_exponent_are_numbers(run, tmp_path):
    done = run("--prune_method", "wanda_idf", "--set", "eps=1e-8", "--save", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["parts"]["mlp"]["params"]["eps"] == 1e-8


def test_a_threshold_that_the_activation_never_meets_needs_no_signs(run, tmp_path, tiny_model, monkeypatch):
    """SiLU never falls below -0.2785: profile standard, without signs, can serve a theta beyond."""
    flags = ["--prune_method", "neuronrank_old", "--threshold"]
    assert run(*flags, "0.3", cache=tmp_path / "cache").exit_code == 0
    monkeypatch.setattr(collecting, "collect_statistics", lambda *_a, **_k: pytest.fail("collected"))
    refused(run(*flags, "0.25", cache=tmp_path / "other"), "sketch_negative_count, which is needed")


def test_why_statistics_of_the_same_text_are_not_reused_is_told(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="neuronrank")
    by_class = ["--prune_method", "neuronrank_fisher", "--neuronrank-max-classes"]
    assert run(*by_class, "10", "--profile", "lean", cache=tmp_path / "cache").exit_code == 1
    assert run("--prune_method", "wanda", "--profile", "lean", cache=tmp_path / "cache").exit_code == 0
    caplog.clear()
    assert run(*by_class, "10", cache=tmp_path / "cache").exit_code == 0
    assert "cannot be reused: " in caplog.text
    assert "profile 'lean' keeps no neuron/class_between, which is needed" in caplog.text


def test_the_summary_counts_the_windows_that_were_used(run, tmp_path):
    assert run("--prune_method", "wanda", cache=tmp_path / "cache").exit_code == 0
    flags = ["--prune_method", "wanda", "--nsamples", "5", "--save", str(tmp_path / "out")]
    assert run(*flags, cache=tmp_path / "cache").exit_code == 0
    calibration = json.loads((tmp_path / "out/summary.json").read_text())["calibration"]
    assert (calibration["n_windows"], calibration["n_windows_held"]) == (5, 12)


def test_flags_become_the_sections_of_params():
    request = read_request(
        Flags(
            model=".",
            prune_method="neuronrank_last",
            sparsity_ratio=0.8,
            pruning_last=3,
            threshold="0.25",
            method_params={"weight_exp": 1.5, "tf_exp": 1.0, "idf_exp": 2.0},
        )
    )
    mlp = request.recipe["mlp"].params
    assert (mlp.method, mlp.weight_exp, mlp.tf_exp, mlp.idf_exp) == ("neuronrank_old", 1.5, 1.0, 2.0)
    assert (mlp.threshold, mlp.theta) == ("theta", 0.25)
    assert request.recipe["attention"].params.method == "none"
    assert request.pattern.params.pruning_last == 3
    assert (request.pattern.params.sparsity, request.pattern.params.attention) == (0.8, False)


def test_a_preset_gives_way_to_an_exponent():
    flags = Flags(model=".", prune_method="hybrid", preset="aggressive", method_params={"idf_exp": 0.5})
    mlp = read_request(flags).recipe["mlp"].params
    assert (mlp.weight_exp, mlp.tf_exp, mlp.idf_exp) == (0.5, 1.0, 0.5)
