"""Real `dvc repro` on the tiny model: which stages run after which change, and sharing through a remote."""

import subprocess
import sys

import pytest

from tests.e2e.repository import ALL, Repository

pytestmark = pytest.mark.e2e

EVALUATION = {"eval_dense", "eval@wanda-50pct", "eval@hybrid-50pct", "eval_sequential@wanda-50pct", "report"}


def test_nothing_runs_when_nothing_changed(repository):
    assert repository.repro() == set()
    assert repository.dvc("status").strip() == "Data and pipelines are up to date."


def test_an_exponent_runs_its_recipe_from_score_on(repository):
    params = repository.read_params()
    params["recipes"]["hybrid"]["mlp"]["idf_exp"] = 2.0
    repository.write_params(params)
    assert repository.repro() == {"score@hybrid", "prune@hybrid-50pct", "eval@hybrid-50pct", "report"}


def test_a_scoring_file_runs_the_recipes_that_use_it(repository):
    scoring = repository.root / "pipeline/neuronrank/scoring/neuronrank_tfidf.py"
    source = scoring.read_text()
    changed = source.replace("(n_active + 1)) + 1)", "(n_active + 1)) + 2)")
    assert changed != source
    scoring.write_text(changed)
    by_layer = {"sequential@wanda-50pct"}  # it may name any method
    assert repository.repro() - by_layer == {"score@hybrid", "prune@hybrid-50pct", "eval@hybrid-50pct", "report"}


def test_the_calibration_seed_runs_all_but_fetch_and_the_dense_evaluation(repository):
    params = repository.read_params()
    params["prepare"]["seed"] = 1
    repository.write_params(params)
    assert repository.repro() == ALL - {"fetch@model", "fetch@text", "eval_dense"}


def test_evaluation_windows_run_only_evaluation(repository):
    params = repository.read_params()
    params["prepare"]["evaluation_windows"] = 4
    repository.write_params(params)
    assert repository.repro() == {"prepare", *EVALUATION}


def test_a_changed_local_text_is_fetched_again(repository):
    news = repository.root / "inputs/text/news.jsonl"
    lines = news.read_text().splitlines(keepends=True)
    news.write_text("".join([*lines[1:], lines[0]]))
    assert repository.repro() == {"fetch@text", "prepare", *EVALUATION}


def test_metrics_and_plots_are_read_by_dvc(repository, tmp_path):
    shown = repository.dvc("metrics", "show", "--md")
    assert "metrics/eval/hybrid/50pct.json" in shown
    for column in ("perplexity.wiki", "ratio_to_dense.news", "sparsity.selected", "seconds"):
        assert column in shown
    assert "perplexity.wiki" in repository.dvc("exp", "show", "--csv")
    repository.dvc("plots", "show", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots/index.html").read_text()
    for title in ("Perplexity by recipe", "Sparsity by layer", "Percentiles of the score factors"):
        assert title in page


def test_a_team_scores_from_a_pulled_artifact_without_collecting(repository, tmp_path):
    repository.git("add", ".")
    repository.git("commit", "--quiet", "--message", "Current")
    repository.dvc("remote", "add", "--default", "--force", "shared", str(tmp_path / "remote"))
    repository.dvc("push")
    repository.git("add", ".")
    repository.git("commit", "--quiet", "--message", "Share")
    repository.git("clone", "--quiet", str(repository.root), str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone", repository.programs)
    clone.dvc("pull")
    assert clone.repro() == set()
    params = clone.read_params()
    params["recipes"]["hybrid"]["mlp"]["idf_exp"] = 3.0
    clone.write_params(params)
    assert clone.repro() == {"score@hybrid", "prune@hybrid-50pct", "eval@hybrid-50pct", "report"}


def test_a_failing_stage_leaves_no_half_written_output(repository):
    params = repository.read_params()
    params["patterns"]["50pct"]["sparsity"] = 1.5
    repository.write_params(params)
    command = [sys.executable, "-m", "dvc", "repro"]
    done = subprocess.run(
        command, cwd=repository.root, env=repository.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "patterns.50pct.sparsity" in done.stderr
    assert not list((repository.root / "artifacts").rglob(".*partial"))
    params["patterns"]["50pct"]["sparsity"] = 0.5
    repository.write_params(params)
    assert repository.repro() == set()  # everything comes back from DVC's cache
