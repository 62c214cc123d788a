"""The example command lines that people bring from single-script pruners, on the trained model.

Needs `artifacts/model`: `make test-slow` makes it first.
"""

import json

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronrank.cli import main
from tests.imports import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

TRAINED = ROOT / "artifacts/model"
# method and flags as typed; share of the selected weights that must go, and which parts are pruned
EXAMPLES = {
    "hybrid": (
        "--prune_method hybrid --sparsity_ratio 0.5 --hybrid-mlp-method neuronrank_tfidf --nr-tfidf-mode topic "
        "--nr-tfidf-k 128 --weight-exp 1.0 --tf-exp 1.5 --idf-exp 1.5",
        0.5,
        {"attention", "mlp"},
    ),
    "last": (
        "--prune_method neuronrank_tfidf --sparsity_ratio 0.5 --pruning_last 30 --nr-tfidf-mode doc",
        0.5,
        {"mlp"},
    ),
    "head": (
        "--prune_method neuronrank_tfidf --sparsity_ratio 0.5 --nr-include-attention --nr-prune-lm-head",
        0.5,
        {"attention", "mlp", "lm_head"},
    ),
    "old": (
        "--prune_method neuronrank_old --sparsity_ratio 0.8 --sparsity_type unstructured --pruning_last 3 "
        "--weight-exp 1.5 --tf-exp 1.0 --idf-exp 2.0",
        0.8,
        {"mlp"},
    ),
    "select": ("--prune_method wanda_select --sparsity_ratio 0.5 --sparsity_type 2:4", 0.5, {"attention", "mlp"}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("oneshot")


@pytest.fixture(scope="module")
def untied(place):
    """The trained model with an output head of its own: a tied one is refused."""
    model = AutoModelForCausalLM.from_pretrained(TRAINED, dtype=torch.bfloat16)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    model.save_pretrained(place / "untied")
    AutoTokenizer.from_pretrained(TRAINED).save_pretrained(place / "untied")
    return place / "untied"


def run(place, model, flags, *more):
    small = ["--nsamples", "4", "--seqlen", "128", "--cache_dir", str(place / "cache")]
    return CliRunner().invoke(main, ["run", "--model", str(model), *flags.split(), *small, *more])


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_command_lines_run_to_the_end(place, untied, caplog, name):
    flags, share, parts = EXAMPLES[name]
    caplog.set_level("INFO", logger="neuronrank")
    done = run(place, untied if name == "head" else TRAINED, flags, "--save", str(place / name))
    assert done.exit_code == 0, done.output
    summary = json.loads((place / name / "summary.json").read_text())
    assert summary["sparsity"]["selected"] == pytest.approx(share, abs=1e-4)
    assert set(summary["part_counts"]) == parts
    lines = [line for line in caplog.text.splitlines() if ": pruned " in line]
    assert len(lines) == len(summary["modules"]) + len(parts) + 1


def test_another_exponent_needs_no_forward_pass(place, caplog, monkeypatch):
    flags = EXAMPLES["hybrid"][0]
    assert run(place, TRAINED, flags).exit_code == 0
    caplog.set_level("INFO", logger="neuronrank")
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_a, **_k: pytest.fail("a model was run"))
    done = run(place, TRAINED, flags.replace("--idf-exp 1.5", "--idf-exp 2.5"))
    assert done.exit_code == 0, done.output
    assert "calibration: no forward pass" in caplog.text


def test_a_tied_head_is_refused(place):
    done = run(place, TRAINED, EXAMPLES["head"][0])
    assert done.exit_code == 1
    assert "lm_head: tied to model.embed_tokens.weight" in done.output
