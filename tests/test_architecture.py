"""The rules that keep the cache honest: what a stage imports is what its deps name, and rooms stay apart."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from neuronrank import registry
from tests.imports import ROOT, file_of, first_party_closure, imported_modules, rooms_loaded

PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
LIBRARY = ROOT / "pipeline" / "neuronrank"
TEMPLATED = {
    "model_sources": "pipeline/neuronrank/${item.what}_sources",
    "text_sources": "pipeline/neuronrank/${item.what}_sources",
    "models": "pipeline/neuronrank/models/${model.architecture}.py",
    "scoring": "pipeline/neuronrank/scoring/${item.attention.method}.py",
    "masks": "pipeline/neuronrank/masks",
}


def stage_definitions():
    for name, stage in PIPELINE.items():
        yield name, stage.get("do", stage)


def module_of(definition) -> str:
    return definition["cmd"].split("stages.")[1].split()[0]


def covered(path: Path, deps: list[str]) -> bool:
    relative = path.relative_to(ROOT)
    return any(relative == Path(dep) or Path(dep) in relative.parents for dep in deps)


@pytest.mark.parametrize(("name", "definition"), list(stage_definitions()), ids=list(PIPELINE))
def test_every_file_that_a_stage_imports_is_in_its_deps(name, definition):
    files = first_party_closure(ROOT / "stages" / f"{module_of(definition)}.py")
    assert len(files) > 8
    deps = definition["deps"]
    rooms = rooms_loaded(files)
    for room in rooms:
        assert {TEMPLATED[room], f"pipeline/neuronrank/{room}"} & set(deps), (
            f"{name}: loads files of {room} by name; add {TEMPLATED[room]} to its deps"
        )
        for member in registry.names(room):  # what a room's files import beside themselves
            files |= first_party_closure(LIBRARY / room / f"{member}.py") - {LIBRARY / room / f"{member}.py"}
    missing = [str(path.relative_to(ROOT)) for path in sorted(files) if not covered(path, deps)]
    templated = {LIBRARY / room / "__init__.py" for room in ("model_sources", "text_sources") if room in rooms}
    missing = [path for path in missing if ROOT / path not in templated]
    assert not missing, f"{name}: add {missing} to deps in dvc.yaml"


@pytest.mark.parametrize(("name", "definition"), list(stage_definitions()), ids=list(PIPELINE))
def test_every_dep_on_code_is_needed(name, definition):
    files = first_party_closure(ROOT / "stages" / f"{module_of(definition)}.py")
    for room in rooms_loaded(files):
        for member in registry.names(room):
            files |= first_party_closure(LIBRARY / room / f"{member}.py")
    for dep in definition["deps"]:
        if dep.startswith(("pipeline/", "stages/")) and "${" not in dep:
            assert any(covered(path, [dep]) for path in files), f"{name}: does not import {dep}"


def test_both_parts_of_a_recipe_name_their_method_file():
    assert "pipeline/neuronrank/scoring/${item.mlp.method}.py" in PIPELINE["score"]["do"]["deps"]


def test_collect_does_not_depend_on_what_comes_after():
    closure = {path.relative_to(LIBRARY).parts[0] for path in collect_files() if path.is_relative_to(LIBRARY)}
    assert not closure & {"scoring", "masks", "evaluation.py", "reporting", "text_sources", "model_sources"}


def collect_files():
    return first_party_closure(ROOT / "stages" / "collect.py")


FILES = {
    "reporting/*.py": {"torch", "transformers", "neuronrank.scoring", "neuronrank.statistics_store"},
    "*_store.py": {"torch", "transformers", "neuronrank.scoring", "neuronrank.evaluation"},
    "windows.py": {"torch", "transformers"},
    "losses.py": {"torch", "transformers"},
    "documents.py": {"torch", "transformers"},
    "comparison.py": {"torch", "transformers"},
    "describing_methods.py": {"torch", "transformers", "neuronrank.statistics_store"},
    "inspecting.py": {"torch", "transformers", "neuronrank.scoring"},
    "opening.py": {"torch", "transformers", "zarr", "neuronrank.scoring", "neuronrank.checkpoint"},
    "differ*.py": {"torch", "transformers", "zarr", "neuronrank.scoring", "neuronrank.checkpoint"},
    "artifact_kinds.py": {"torch", "transformers", "gguf", "neuronrank.scoring", "neuronrank.checkpoint"},
    "export_description.py": {"torch", "transformers", "neuronrank.checkpoint", "neuronrank.export"},
    "printing.py": {"torch", "transformers"},
    "sizing.py": {"torch", "transformers", "neuronrank.scoring"},
    "gguf_container.py": {"torch", "transformers", "gguf", "neuronrank.statistics_store"},
    "imatrix.py": {"torch", "transformers", "gguf", "neuronrank.statistics_store"},
    "imatrix_names.py": {"torch", "transformers", "neuronrank.statistics_store"},
    "exporting_imatrix.py": {"torch", "transformers", "neuronrank.scoring", "neuronrank.checkpoint"},
    "evaluation.py": {"neuronrank.scoring", "neuronrank.statistics", "neuronrank.scores", "lm_eval"},
    "zero_shot.py": {"neuronrank.scoring", "neuronrank.statistics", "neuronrank.evaluation"},
    "streaming.py": {"neuronrank.scoring", "neuronrank.masks", "neuronrank.evaluation"},
    "collection.py": {"neuronrank.scoring", "neuronrank.masks", "neuronrank.evaluation"},
}


@pytest.mark.parametrize("pattern", sorted(FILES))
def test_files_stay_within_their_layer(pattern):
    files = sorted(LIBRARY.glob(pattern))
    assert files
    for path in files:
        assert not imported_modules(path) & FILES[pattern], path.name


def test_what_all_share_imports_nothing_else():
    names = ("errors", "files", "locks", "outputs", "params", "registry")
    names = (*names, "printing", "regular_files", "safetensors_header", "seals", "storage")
    shared = {"neuronrank", *(f"neuronrank.{name}" for name in names)}
    for name in names:
        path = LIBRARY / f"{name}.py"
        ours = {module for module in imported_modules(path) if module.startswith("neuronrank") and file_of(module)}
        assert ours <= shared, path.name


FORBIDDEN = {
    "scoring": {"torch", "transformers", "click", "neuronrank.masks", "neuronrank.checkpoint"},
    "masks": {"torch", "transformers", "click", "neuronrank.scoring", "neuronrank.statistics_store"},
    "models": {"torch", "transformers", "numpy"},
    "statistics": {"zarr", "safetensors", "transformers", "neuronrank.files"},
}


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_rooms_stay_apart(room):
    files = sorted((LIBRARY / room).glob("*.py"))
    assert len(files) > 1
    for path in files:
        found = imported_modules(path) & FORBIDDEN[room]
        assert not found, f"{path.name} imports {found}"
        siblings = {f"neuronrank.{room}.{name}" for name in registry.names(room)}
        assert not imported_modules(path) & siblings, f"{path.name} imports another file of its room"


def test_every_method_and_rule_names_its_source_and_what_differs():
    checked = 0
    for room in ("scoring", "masks"):
        for name in registry.names(room):
            described = registry.load(room, name).__doc__
            assert "Source:" in described, name
            assert "Differs:" in described, name
            checked += 1
    assert checked == 16 + 4


def test_reading_artifacts_needs_neither_torch_nor_transformers():
    script = (
        "import sys, neuronrank.statistics_store, neuronrank.score_store, neuronrank.mask_store, neuronrank.scores;"
        "import neuronrank.describing_methods, neuronrank.inspection_text, neuronrank.sizing, neuronrank.topic_report;"
        "import neuronrank.opening, neuronrank.difference_text;"
        "from neuronrank import registry; [registry.load('scoring', name) for name in registry.names('scoring')];"
        "sys.exit(int(bool({'torch', 'transformers'} & set(sys.modules))))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_shipped_parameters_are_sound():
    from neuronrank.project import check_params

    assert check_params(ROOT / "params.yaml") == (20, 3)


def test_every_fault_of_a_parameter_file_is_told_at_once(tmp_path):
    from neuronrank.errors import ParamsError
    from neuronrank.project import check_params

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["colect"] = params.pop("collect")
    params["model"]["architecture"] = "lama"
    params["patterns"]["0.5"] = {"rule": "unstructured", "sparsity": 0.5}
    params["sweep"]["recipes"].append("wnada")
    params["prepare"]["window_tokens"] = 1
    params["recipes"]["wanda"]["mlp"]["methd"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ParamsError) as caught:
        check_params(tmp_path / "params.yaml")
    message = str(caught.value)
    assert "colect: unknown section, did you mean 'collect'?" in message
    assert "params: no 'collect', did you mean 'colect'?" in message
    assert "prepare.window_tokens: found 1; input should be greater than or equal to 2" in message
    assert "recipes.wanda.mlp.methd: unknown key, did you mean 'method'?" in message
    assert "model.architecture: 'lama' is not supported, did you mean 'llama'?" in message
    assert "patterns.0.5: a name is letters, digits, '-' and '_'" in message
    assert "sweep.recipes: 'wnada' is not in recipes, did you mean 'wanda'?" in message


def test_code_that_comes_with_a_model_cannot_be_allowed(tmp_path):
    from neuronrank.errors import ParamsError
    from neuronrank.project import check_params

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["model"]["trust_remote_code"] = False
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ParamsError, match=r"^model\.trust_remote_code: code that comes with a model is never run"):
        check_params(tmp_path / "params.yaml")


def test_recipes_that_the_planned_statistics_cannot_serve_are_told(tmp_path):
    from neuronrank.errors import ParamsError
    from neuronrank.project import check_params

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["collect"]["classes"] = 100
    params["recipes"]["tfidf"]["mlp"]["axis"] = "gate_pre"
    params["recipes"]["tfidf_topic"]["mlp"]["topics"] = 129
    params["recipes"]["wanda"]["mlp"]["nsamples"] = 65
    params["recipes"]["wanda_spiky"]["mlp"] = {"method": "neuronrank_fisher", "classes": 101}
    params["recipes"]["wanda_idf"]["mlp"] = {"method": "neuronrank_tfidf", "mode": "topic", "topics": 130}
    params["recipes"]["hybrid"]["attention"] = {"method": "neuronrank_tfidf", "threshold": "sign"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ParamsError) as caught:
        check_params(tmp_path / "params.yaml")
    lines = str(caught.value).splitlines()
    for recipe, said in (
        ("tfidf", "profile 'standard' keeps no gate_pre/tf_sum, which is needed. Set collect.profile: full"),
        ("tfidf_topic", "holds 128 micro-topics, 129 topics were asked for. Raise collect.topics.micro_topics"),
        ("wanda", "holds 64 documents, nsamples 65 were asked for"),
        ("fisher", "holds 100 token classes, 512 were asked for. Raise collect.classes"),
        ("wanda_spiky", "holds 100 token classes, 101 were asked for"),
        ("wanda_idf", "holds 128 micro-topics, 130 topics were asked for"),
        ("hybrid", "keeps no q_out/sum, which is needed. Set collect.profile: full"),
    ):
        assert any(line.startswith(f"recipes.{recipe}: ") and said in line for line in lines), lines
    assert not any(line.startswith("recipes.wanda_select: ") for line in lines)


def test_a_fault_is_told_once_and_brings_no_others(tmp_path):
    from neuronrank.errors import ParamsError
    from neuronrank.project import check_params

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["sweep"]["recipes"] = "wanda"
    del params["report"], params["model"]
    params["patterns"][50] = params["patterns"]["50pct"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ParamsError) as caught:
        check_params(tmp_path / "params.yaml")
    said = [
        "params: no 'model'",
        "patterns.50: a name is text; put it in quotes",
        "sweep.recipes: found 'wanda'",
        "params: no 'report'",
    ]
    lines = str(caught.value).splitlines()
    assert len(lines) == len(said), lines
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True)), lines


def test_a_sweep_of_recipes_and_patterns_that_do_not_fit_is_told(tmp_path):
    from neuronrank.errors import ParamsError
    from neuronrank.project import check_params

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["sweep"]["recipes"] += ["variance_structured", "variance_unstructured"]
    params["recipes"]["variance_unstructured"]["mlp"]["magnitude_multi"] = 0.0
    params["sweep"]["patterns"] = ["50pct", "neurons50", "2of4"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ParamsError) as caught:
        check_params(tmp_path / "params.yaml")
    lines = str(caught.value).splitlines()
    said = "method 'wanda' of the MLP has no neuron score (`neuronrank methods` lists those)"
    assert f"sweep: pattern 'neurons50' cannot prune recipe 'wanda': {said}" in lines
    said = "the score of 'neuronrank_unstructured' is the same all along a row, and the pattern compares within rows"
    assert f"sweep: pattern '2of4' cannot prune recipe 'variance_unstructured': {said}" in lines
    said = "method 'neuronrank' of mlp ranks whole neurons, as structured masks do, not single weights"
    assert f"sweep: pattern '50pct' cannot prune recipe 'variance_structured': {said}" in lines
    assert not any("'neurons50' cannot prune recipe 'variance_structured'" in line for line in lines)


def test_a_key_that_comes_twice_is_refused(tmp_path):
    from neuronrank.errors import ParamsError
    from neuronrank.params import read_params

    (tmp_path / "params.yaml").write_text("prepare: {seed: 1, seed: 2}\n")
    with pytest.raises(ParamsError, match="key 'seed' comes twice"):
        read_params(tmp_path / "params.yaml")


def test_names_that_the_sweep_uses_must_exist(tmp_path):
    from neuronrank.errors import ParamsError
    from neuronrank.project import check_params

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["sweep"]["recipes"] = ["wanda", "hybird"]
    params["report"]["reference"] = "magnitude"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ParamsError) as caught:
        check_params(tmp_path / "params.yaml")
    assert "sweep.recipes: 'hybird' is not in recipes, did you mean 'hybrid'?" in str(caught.value)
    assert "report.reference: 'magnitude' is not in sweep.recipes" in str(caught.value)


def test_compiled_loops_take_nothing_compiled_from_another_file():
    """Numba keeps what it compiled until the file itself changes: it would not notice the other's changes."""
    compiled = {
        path.stem: ast.parse(path.read_text())
        for path in (ROOT / "pipeline/neuronrank").rglob("*.py")
        if "\n@compiled" in path.read_text() or "\n@intrinsic" in path.read_text()
    }
    assert {"kernels", "score_kernel", "_row_select"} <= compiled.keys()
    for name, tree in compiled.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.rpartition(".")[2] in compiled:
                assert all(alias.name[0].isupper() for alias in node.names), f"{name} imports from {node.module}"


def test_no_code_that_comes_with_a_model_is_ever_run():
    """Every call that could run it says so itself, whatever the library's default becomes."""
    calls = []
    for path in [*LIBRARY.rglob("*.py"), *(ROOT / "stages").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name.startswith("Auto") and name.endswith((".from_pretrained", ".from_config")):
                said = [ast.unparse(word.value) for word in node.keywords if word.arg == "trust_remote_code"]
                assert said == ["False"], f"{path.name}: {name}"
                calls.append(name)
    assert len(calls) == 7
