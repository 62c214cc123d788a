"""The table of all methods: what is measured, and that the document is what was measured."""

import json

import pytest
import yaml

from neuronrank.checkpoint import open_model
from neuronrank.errors import ArtifactError
from neuronrank.method_table import measure_all, render, replace_table
from neuronrank.windows import read_windows
from tests.imports import ROOT

MARKS = "# Title\n\n<!-- results: written by `make table` -->\nold\n<!-- end of results -->\n\nend\n"


@pytest.fixture(scope="module")
def result(finished_project):
    params = yaml.safe_load(finished_project.params.read_text())
    old = {"method": "neuronrank_old"}
    params["recipes"]["old"] = {"attention": {"method": "none"}, "mlp": old}
    params["recipes"]["structured"] = {"attention": {"method": "none"}, "mlp": {"method": "neuronrank", "classes": 10}}
    params["recipes"]["attention"] = {"attention": {"method": "wanda"}, "mlp": {"method": "none"}}
    params["patterns"]["neurons"] = {"rule": "structured", "sparsity": 0.25}
    params["patterns"]["untied"] = {"rule": "unstructured", "sparsity": 0.5, "lm_head": True, "untie_lm_head": True}
    params["patterns"]["mlp"] = {"rule": "unstructured", "sparsity": 0.5, "attention": False}
    tokens = finished_project.artifacts / "tokens"
    evaluation = {path.stem: read_windows(path) for path in sorted((tokens / "evaluation").glob("*.safetensors"))}
    calibration = read_windows(tokens / "calibration/windows.safetensors")
    lines = []
    model = open_model(finished_project.artifacts / "model")
    return measure_all(model, calibration, evaluation, params, lines.append)


def test_every_recipe_meets_every_pattern_that_it_can(result):
    found = {(row["recipe"], row["pattern"]) for row in result["rows"]}
    plain = {
        (recipe, pattern) for recipe in ("wanda", "hybrid", "old") for pattern in ("50pct", "2of4", "untied", "mlp")
    }
    attention = {("attention", pattern) for pattern in ("50pct", "2of4", "untied")}
    assert found == plain | attention | {("old", "neurons"), ("structured", "neurons")}


def test_an_untied_head_leaves_the_next_row_as_it_was(result):
    rows = {(row["recipe"], row["pattern"]): row["perplexity"]["wiki"] for row in result["rows"]}
    assert rows["old", "50pct"] == rows["old", "mlp"]  # the same mask, before and after the untied row
    assert rows["old", "untied"] != rows["old", "50pct"]


def test_the_figures_are_those_of_the_pipeline(result, finished_project):
    for recipe in ("wanda", "hybrid"):
        measured = json.loads((finished_project.metrics / f"eval/{recipe}/50pct.json").read_text())
        (row,) = (row for row in result["rows"] if (row["recipe"], row["pattern"]) == (recipe, "50pct"))
        for text, value in measured["perplexity"].items():
            assert row["perplexity"][text] == pytest.approx(value, abs=0.006)
        assert row["sparsity"]["linears"] == pytest.approx(measured["sparsity"]["linears"], abs=1e-4)


def test_times_add_up(result):
    seconds = result["seconds"]
    parts = sum(seconds[name] for name in ("collect", "score", "prune", "eval"))
    assert 0 < parts <= seconds["total"] + 0.5


def test_a_document_takes_the_table_between_its_marks(result, tmp_path):
    document = tmp_path / "RESULTS.md"
    document.write_text(MARKS)
    replace_table(document, render(result), "make table")
    content = document.read_text()
    assert content.startswith("# Title")
    assert content.endswith("end\n")
    assert "old\n" not in content
    assert "| 50pct | wanda | 50.0 % |" in content
    document.write_text("no marks")
    with pytest.raises(ArtifactError, match="has no lines"):
        replace_table(document, "x", "make table")


def test_the_results_in_the_docs_are_the_measured_ones():
    results = json.loads((ROOT / "docs/results.json").read_text())
    assert render(results) in (ROOT / "docs/RESULTS.md").read_text()
    recipes = set(yaml.safe_load((ROOT / "params.yaml").read_text())["recipes"])
    assert {row["recipe"] for row in results["rows"]} == recipes
