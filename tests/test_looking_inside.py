"""`neuronrank methods`, `inspect`, `topics` and `size`: against values worked out by hand, and what they refuse."""

import json
import shutil

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from safetensors.numpy import save_file

from neuronrank import registry, scoring
from neuronrank.cli import main
from neuronrank.describing_methods import method_description, method_parameters, methods_table
from neuronrank.files import write_sealed_json
from neuronrank.inspecting import describe
from neuronrank.model_shape import Sizes
from neuronrank.presets import ALIASES, PRESET_METHOD, PRESETS
from neuronrank.profiles import PROFILES
from neuronrank.sizing import Measured, PlannedArray, estimated_bytes, measure, planned_arrays
from neuronrank.statistics_store import Statistics
from neuronrank.statistics_writer import StatisticsWriter
from neuronrank.stored_arrays import StoredArray, kind_of, stored_arrays, total_bytes
from neuronrank.topic_report import NOWHERE, read_topics
from tests import artifacts
from tests.project import Project, tiny_params

METHODS = registry.names("scoring")


def run(*command, code=0) -> str:
    done = CliRunner().invoke(main, [str(part) for part in command])
    assert done.exit_code == code, done.output
    return done.output


# methods


def test_the_table_has_a_row_for_every_method():
    lines = methods_table()
    assert [line.split()[0] for line in lines if not line.startswith(" ") and ": another" not in line and line] == [
        "method",
        *METHODS,
    ]
    wanda = next(line for line in lines if line.startswith("wanda "))
    assert wanda.split("  ")[0] == "wanda"
    assert "weights " in wanda
    assert " attention, mlp  row " in wanda
    assert "||x_j||_2^activation_exp" in wanda
    assert lines[lines.index(wanda) + 1].strip() == "reads sum_sq of inputs"
    fisher = next(line for line in lines if line.startswith("neuronrank_fisher "))
    assert "weights, neurons" in fisher
    assert " mlp " in fisher
    variance = next(line for line in lines if line.startswith("neuronrank_variance "))
    assert variance.split()[1] == "neurons"


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_is_explained(name):
    method = registry.load("scoring", name)
    parameters = method_parameters(method)
    assert {parameter.name for parameter in parameters} == set(method.Params.model_fields) - {"method"}
    assert all(parameter.about for parameter in parameters), [p.name for p in parameters if not p.about]


def test_types_and_ranges_are_those_that_are_checked():
    found = {parameter.name: parameter for parameter in method_parameters(registry.load("scoring", "neuronrank_tfidf"))}
    stated = {name: (p.type, p.allowed, p.default) for name, p in found.items()}
    assert stated["q_active"] == ("number", "> 0 and < 1", "0.6")
    assert stated["spike_max"] == ("number", "> 1", "10.0")
    assert stated["nsamples"] == ("whole number or null", "> 0", "null")
    assert stated["mode"] == ("choice", "doc | topic", "doc")
    assert stated["idf_exp"] == ("number", "", "1.0")
    assert stated["weight_exp"] == ("number", ">= 0", "1.0")
    smooth = {p.name: p for p in method_parameters(registry.load("scoring", "wanda_idf"))}["smooth"]
    assert (smooth.type, smooth.allowed, smooth.default) == ("true | false", "", "false")
    assert smooth.about == "ln(1/p) + 1 instead of ln(1/p)."


def test_a_method_is_explained_whole_and_by_its_other_names():
    shown = run("methods", "wanda-selective")
    assert shown.startswith("wanda_select\n")
    assert "Source: METHODS section 3.2" in shown
    assert "Differs: earlier single-script versions" in shown
    assert "Also called: wanda_selective" in shown
    assert method_description("neuronrank_last") == method_description("neuronrank_old")
    assert set(ALIASES.values()) <= set(METHODS)
    assert not set(ALIASES) & set(METHODS)


def test_presets_are_shown_and_valid():
    shown = run("methods", "neuronrank_tfidf")
    assert "conservative: weight_exp 1.0, tf_exp 1.5, idf_exp 1.0" in shown
    assert "balanced: weight_exp 1.0, tf_exp 1.0, idf_exp 1.5" in shown
    assert "aggressive: weight_exp 0.5, tf_exp 1.0, idf_exp 2.5" in shown
    assert "Presets" not in run("methods", "wanda")
    for preset in PRESETS.values():
        registry.load("scoring", PRESET_METHOD).Params(method=PRESET_METHOD, **preset)


def test_an_unknown_method_is_refused_with_the_nearest():
    assert "unknown name 'wnada', did you mean 'wanda'?" in run("methods", "wnada", code=1)


BROKEN = {
    "lacking": ("PARTS = ()\n", "scoring/lacking.py: has no READS, DEFAULT_GROUP, Params, element; a file there has"),
    "unimportable": ("import no_such_module\n", "scoring/unimportable.py: cannot be imported: ModuleNotFoundError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_method_is_named_and_does_not_hide_the_others(tmp_path, monkeypatch, name):
    content, message = BROKEN[name]
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.setattr(scoring, "__path__", [*scoring.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "names", lambda _room: [*METHODS, name])
    assert message in run("methods", name, code=1)
    lines = methods_table()
    assert any(line.startswith(name) and message in line for line in lines)
    assert any(line.startswith("wanda ") for line in lines)


# inspect


def small_artifact(directory) -> Statistics:
    """Two documents of ten tokens."""
    sums = {
        ("mlp_in", "sum_sq"): [[9, 0, 9, 16], [16, 9, 0, 9]],
        ("neuron", "sum_abs"): [[10, 30], [40, 30]],
        ("neuron", "n_positive"): [5, 15],
        ("topics", "count"): [4, 0, 16],
    }
    return artifacts.statistics(directory, sums, [])


def test_a_layers_summary_is_that_of_hand_made_sums(tmp_path):
    (layer,) = describe(small_artifact(tmp_path).directory)["layers"]
    assert layer["rms"]["mlp_in"] == pytest.approx((68 / 4 / 20) ** 0.5)  # over channels and tokens, not documents
    assert layer["rms"]["attn_in"] is None
    assert layer["neuron_mean_abs"] == pytest.approx(110 / 2 / 20)
    assert layer["neuron_positive_share"] == 0.5
    # Sorted 10 30 30 40: the 0.6 quantile lies between 30 and 30; neuron 0 reaches it once, neuron 1 twice.
    assert layer["neuron_df"] == {"min": 1, "median": 1.5, "max": 2}
    assert layer["topics"] == {"non_empty": 2, "of": 3}


def test_statistics_are_listed_array_by_array(finished_project):
    found = json.loads(run("inspect", finished_project.statistics, "--json"))
    assert (found["profile"], found["n_layers"]) == ("full", 2)
    assert found["calibration"]["n_tokens"] == 12 * 16
    assert (found["calibration"]["seed"], found["calibration"]["source"]["source"]) == (0, "files")
    assert found["collect"]["topics"]["micro_topics"] == 8
    arrays = {array["path"]: array for array in found["arrays"]}
    neuron = arrays["neuron/sum_sq"]
    assert (neuron["shape"], neuron["dtype"], neuron["units"]) == ([2, 12, 40], "float32", "activation^2")
    assert neuron["raw_mib"] == round(2 * 12 * 40 * 4 / 2**20, 3)
    assert arrays["token_ids"]["shape"] == [12, 16]
    assert arrays["weights"]["shape"] == [2 * 3 * (56 + 40 + 40 + 56 + 64 + 64 + 64)]  # rows and columns of 7 modules
    assert found["size_mib"]["stored"] == round(total_bytes(finished_project.statistics) / 2**20, 3)
    assert all(array["units"] for array in found["arrays"])
    shown = run("inspect", finished_project.statistics)
    assert "profile: full" in shown
    assert "2 x 12 x 40" in shown
    assert "8/8" in shown


def test_scores_masks_losses_and_windows_are_summed_up(finished_project):
    scores = describe(finished_project.scores("hybrid"))
    assert scores["vectors"] == {"row": 4, "column": 10, "neurons": 0}  # rows: gate and up of two layers
    assert scores["parts"]["mlp"]["method"] == "neuronrank_tfidf"
    masks = describe(finished_project.mask("wanda", "50pct"))
    attention, mlp = 2 * (2 * 24 * 32 + 2 * 24 * 16), 2 * 3 * 24 * 40
    assert masks["parts"]["attention"] == {"removed": attention // 2, "weights": attention, "sparsity": 0.5}
    assert masks["parts"]["mlp"]["removed"] == mlp // 2
    assert (masks["recipe"], masks["pattern"]["rule"]) == ("wanda", "unstructured")
    losses = describe(finished_project.artifacts / "losses/dense.safetensors")
    stated = json.loads((finished_project.metrics / "eval/dense.json").read_text())["perplexity"]
    assert losses["texts"]["wiki"]["n_windows"] == 5
    assert losses["texts"]["wiki"]["perplexity"] == pytest.approx(stated["wiki"], abs=1e-3)
    windows = describe(finished_project.artifacts / "tokens/calibration/windows.safetensors")
    assert (windows["n_windows"], windows["n_tokens"]) == (12, 192)
    for path in (finished_project.scores("hybrid"), finished_project.mask("wanda", "50pct")):
        assert "fingerprint" in run("inspect", path)
    assert "mlp: removed 2880/5760 (50.00%)" in run("inspect", finished_project.mask("wanda", "50pct"))


def test_what_cannot_be_inspected_is_one_message(project, tmp_path):
    assert "nowhere: not found" in run("inspect", tmp_path / "nowhere", code=1)
    assert "has no manifest.json, neuronrank.json, model.json, so it is no statistics artifact" in run(
        "inspect", tmp_path, code=1
    )
    save_file({"x": np.zeros(2)}, tmp_path / "other.safetensors")
    assert "schema is 'none'; expected one that is shown" in run("inspect", tmp_path / "other.safetensors", code=1)
    (tmp_path / "x.safetensors").write_bytes(b"no")
    assert "not a readable safetensors file" in run("inspect", tmp_path / "x.safetensors", code=1)
    lost = project.statistics / "taps.zarr/neuron/sum_abs/c/1"
    shutil.rmtree(lost)
    assert "sum_abs: has 1 of 2 chunks. Run: dvc repro collect" in run("inspect", project.statistics, code=1)
    shutil.rmtree(lost.parent.parent)
    assert "sum_abs/zarr.json: missing, although the manifest lists it" in run("inspect", project.statistics, code=1)


# topics


def micro_topics(directory) -> Statistics:
    """Four micro-topics of one layer; 1 and 3 merge first."""
    nearest = np.full((4, 12, 2), NOWHERE, dtype=np.uint32)
    nearest[1, :2] = [[0, 1], [0, 2]]
    nearest[3, :3] = [[1, 5], [1, 6], [1, 7]]
    arrays = {
        ("topics", "count"): np.array([6, 2, 0, 12], dtype=np.int32),
        ("topics", "merges"): np.array([[1, 3], [0, 2], [4, 5]], dtype=np.int32),
        ("topics", "nearest"): nearest,
    }
    writer = StatisticsWriter(directory, 1, "standard")
    writer.write_layer(0, arrays, {})
    collect = {"dtype": "float32", "propagation": "dense"}
    empty = {"model": {"fingerprint": "f" * 64}, "collect": collect, "lm_head": {}, "n_layers": 1, "modules": []}
    writer.finish({**empty, "calibration": {"n_windows": 2, "window_tokens": 10, "sha256": "c" * 64}})
    return Statistics(directory / "artifact")


def test_merged_topics_show_the_nearest_of_each_micro_topic_by_turns(tmp_path):
    largest, second, third = read_topics(micro_topics(tmp_path), 0, 3)
    assert (largest.micro_topics, largest.n_tokens) == ((3, 1), 14)
    assert largest.places == ((1, 5), (0, 1), (1, 6), (0, 2), (1, 7))
    assert (second.micro_topics, second.n_tokens, second.places) == ((0,), 6, ())
    assert (third.micro_topics, third.n_tokens) == ((2,), 0)


def test_topics_are_shown_with_the_tokens_that_belong_to_them(finished_project):
    model = finished_project.artifacts / "model"
    shown = run("topics", finished_project.statistics, "--layer", 1, "--topics", 3, "--model", model, "--examples", 1)
    lines = shown.splitlines()
    assert lines[0] == "3 topics of 8 micro-topics, 3 with tokens; 192 tokens"
    store = zarr.open_group(finished_project.statistics / "taps.zarr", mode="r")
    labels = store["topics/labels"][1]
    sizes = []
    for topic in read_topics(Statistics(finished_project.statistics), 1, 3):
        sizes.append(topic.n_tokens)
        assert topic.n_tokens == np.isin(labels, topic.micro_topics).sum()
        assert topic.places
        assert all(labels[document, token] in topic.micro_topics for document, token in topic.places)
        assert f": {topic.n_tokens} tokens ({topic.n_tokens / 192:.2%}), micro-topics " in shown
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 192
    assert sum("[" in line for line in lines) == 3


def test_topics_that_there_are_not_are_refused(finished_project, tmp_path):
    statistics, model = finished_project.statistics, finished_project.artifacts / "model"
    options = ["--model", model]
    assert "has layers 0 to 1, layer 2 was asked for" in run("topics", statistics, "--layer", 2, *options, code=1)
    refused = run("topics", statistics, "--layer", 0, "--topics", 9, *options, code=1)
    assert "holds 8 micro-topics, 9 topics were asked for. Raise collect.topics.micro_topics" in refused
    assert "model.json: not found" in run("topics", statistics, "--layer", 0, "--model", tmp_path, code=1)


def test_tokens_of_another_tokenizer_are_not_decoded(project):
    manifest = project.statistics / "manifest.json"
    content = json.loads(manifest.read_text())
    content["model"]["tokenizer_sha256"] = "0" * 64
    write_sealed_json(manifest, content)
    refused = run("topics", project.statistics, "--layer", 0, "--model", project.artifacts / "model", code=1)
    assert "its tokens were made by tokenizer 000000000000…" in refused


# size

TINY = {
    "hidden": 24,
    "intermediate": 40,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "vocab": 64,
    "windows": 12,
    "window_tokens": 16,
    "classes": 10,
    "micro_topics": 8,
    "tied": True,
}
LLAMA_7B = {
    "hidden": 4096,
    "intermediate": 11008,
    "layers": 32,
    "heads": 32,
    "kv_heads": 32,
    "head_dim": 128,
    "vocab": 32000,
    "windows": 128,
    "window_tokens": 2048,
    "classes": 512,
    "micro_topics": 128,
}


@pytest.fixture(scope="module", params=list(PROFILES))
def collected(request, finished_project, tiny_model, tiny_texts, tmp_path_factory):
    """An artifact of every profile, the full one with Gram matrices."""
    root = tmp_path_factory.mktemp("sized")
    shutil.copytree(finished_project.artifacts / "model", root / "artifacts/model")
    shutil.copytree(finished_project.artifacts / "tokens", root / "artifacts/tokens")
    params = tiny_params(tiny_model, tiny_texts)
    params["collect"] |= {"profile": request.param, "gram": request.param == "full"}
    project = Project(root, params)
    done = project.collect()
    assert done.exit_code == 0, done.output
    return request.param, project.statistics


def test_planned_arrays_are_those_of_a_real_artifact(collected):
    profile, directory = collected
    planned = planned_arrays(Sizes(**TINY, gram=profile == "full").shape, profile)
    real = stored_arrays(Statistics(directory))
    assert {one.path: (one.shape, one.dtype) for one in planned} == {one.path: (one.shape, one.dtype) for one in real}
    assert len(real) == len(planned)


def test_an_artifact_predicts_its_own_size(collected):
    profile, directory = collected
    sizes = Sizes(**TINY, gram=profile == "full")
    like = measure(directory)
    estimated = (
        sum(estimated_bytes(one, sizes, profile, like) for one in planned_arrays(sizes.shape, profile)) + like.around
    )
    assert estimated == pytest.approx(total_bytes(directory), rel=0.05)


def test_weights_are_counted_as_the_model_has_them(finished_project):
    from neuronrank.checkpoint import open_model

    # q and o 768 each, k and v 384 each, three of 960, two norms of 24; embeddings 64 * 24 and the last norm
    assert Sizes(**TINY).weight_bytes == 2 * (2 * (2 * 768 + 2 * 384 + 3 * 960 + 48) + 1536 + 24)
    assert Sizes(**TINY).weight_bytes == 2 * open_model(finished_project.artifacts / "model").n_parameters
    assert Sizes(**LLAMA_7B).weight_bytes == 2 * 6_738_415_616  # published


def test_the_shape_of_a_7b_llama_by_hand():
    planned = {one.path: one for one in planned_arrays(Sizes(**LLAMA_7B).shape, "standard")}
    documents = sum(one.raw_bytes for one in planned.values() if kind_of(one.path) == "document sums")
    # sum_sq: 3 * 4096 + 11008; sum_abs: 6 * 4096 + 2 * 11008; sum: 11008 values of a layer and document
    assert documents == (9 * 4096 + 4 * 11008) * 32 * 128 * 4
    assert planned["neuron/class_sum"].shape == (32, 513, 11008)
    assert "neuron/sum_abs" not in {one.path for one in planned_arrays(Sizes(**LLAMA_7B).shape, "lean")}
    lean = sum(one.raw_bytes for one in planned_arrays(Sizes(**LLAMA_7B).shape, "lean"))
    assert lean < 0.01 * Sizes(**LLAMA_7B).weight_bytes


def test_a_sketch_grows_by_channels_and_by_a_bit_a_bin_for_each_doubling():
    reference = StoredArray("neuron/sketch_count", (1, 4, 762), "int32", "token", 400)
    plain = StoredArray("neuron/sum_abs", (1, 12, 4), "float32", "activation", 96)
    like = Measured({one.path: one for one in (reference, plain)}, "standard", 12 * 4, {reference.path: 16.0}, 0)
    sizes = Sizes(**TINY)  # 192 tokens, two doublings of 48
    estimate = estimated_bytes(PlannedArray(reference.path, (2, 40, 762), "int32"), sizes, "standard", like)
    assert estimate == (400 / 4 + 16 * 2 / 8) * 80
    assert estimated_bytes(PlannedArray("q_out/sum_abs", (2, 12, 32), "float32"), sizes, "standard", like) == 2 * 768
    assert estimated_bytes(PlannedArray("q_out/sum_abs", (2, 12, 32), "float32"), sizes, "full", like) is None
    assert estimated_bytes(PlannedArray("neuron/class_sum", (2, 11, 40), "float32"), sizes, "standard", like) is None


def test_size_reads_a_models_config_and_marks_what_is_not_measured(finished_project, tiny_model, tmp_path):
    options = ["--windows", 12, "--window-tokens", 16, "--classes", 10, "--micro-topics", 8]
    shown = run("size", "--config", tiny_model / "config.json", *options, "--like", finished_project.statistics)
    assert "bfloat16 weights: 0.0 MiB" in shown
    full = shown.split("\nfull")[1]
    assert "not measured" not in full
    assert "At most: not measured in the artifact given, taken as raw: document sums" in shown.split("\nfull")[0]
    assert "bfloat16 weights: 12852.5 MiB" in run("size")
    more_layers = run("size", "--config", tiny_model / "config.json", "--layers", 2000, "--vocab", 65)
    assert f"bfloat16 weights: {2 * (2000 * 5232 + 65 * 24 + 24) / 2**20:.1f} MiB" in more_layers
    damaged = tmp_path / "config.json"
    damaged.write_text("hidden_size: 8")
    assert "not valid JSON" in run("size", "--config", damaged, code=1)
    damaged.write_text('{"hidden_size": 8}')
    assert "has no intermediate_size, num_hidden_layers, num_att" in run("size", "--config", damaged, code=1)


def test_numbers_copied_from_files_that_need_torch_are_the_same():
    from neuronrank import topics

    assert topics.NOWHERE == NOWHERE
