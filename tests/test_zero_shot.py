"""Zero-shot evaluation: what is refused without the extra, and, slow, the harness against plain transformers.

The slow tests need `artifacts/model` and `artifacts/text`; `make test-slow` makes them, and installs the extra.
"""

import importlib.util
import json
import socket
import sys

import pytest
import torch
import yaml
from scipy.stats import binomtest
from transformers import AutoModelForCausalLM, AutoTokenizer

from neuronrank.errors import ParamsError, SourceError, UnknownName
from neuronrank.evaluation import EvalParams
from neuronrank.mask_store import MaskFile
from neuronrank.params import validate
from neuronrank.zero_shot import USUAL_SEVEN, ZeroShotParams, load_tasks, summarise
from tests import analogies
from tests.imports import ROOT
from tests.project import Project, tiny_params

EVAL = {"dtype": "float32", "windows_per_batch": 2, "seed": 0}
N_ITEMS = 60
RECIPES = (None, "magnitude", "wanda")


def eval_params(**zero_shot) -> EvalParams:
    return validate(EvalParams, {**EVAL, "zero_shot": zero_shot}, "eval")


def test_it_is_off_unless_tasks_are_named():
    assert validate(EvalParams, EVAL, "eval").zero_shot.names == []
    assert load_tasks(ZeroShotParams()) == {}
    assert eval_params(tasks=["usual_seven", "mine"]).zero_shot.names == [*USUAL_SEVEN, "mine"]


def test_faults_of_the_parameters_come_together():
    with pytest.raises(ParamsError) as caught:
        eval_params(taks=["boolq"], limit=0, n_fewshot=-1, batch_size="auto")
    message = str(caught.value)
    assert "eval.zero_shot.taks: unknown key, did you mean 'tasks'?" in message
    assert "eval.zero_shot.limit: found 0" in message
    assert "eval.zero_shot.n_fewshot: found -1" in message
    assert "eval.zero_shot.batch_size: found 'auto'" in message


def test_without_the_extra_a_stage_says_what_to_install_and_writes_nothing(
    project, tiny_model, tiny_texts, monkeypatch
):
    params = tiny_params(tiny_model, tiny_texts)
    params["eval"]["zero_shot"] = {"tasks": ["boolq"]}
    project.write_params(params)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    losses = project.artifacts / "losses/dense.safetensors"
    losses.unlink()
    result = project.eval()
    assert result.exit_code == 1
    assert "eval.zero_shot.tasks: need lm-evaluation-harness" in result.output
    assert 'pip install -e ".[zeroshot]" -c constraints.txt' in result.output
    assert not losses.exists()


def test_results_are_named_by_metric_and_filter():
    found = summarise(
        {
            "results": {
                "capitals": {
                    "alias": "capitals",
                    "sample_len": 40,
                    "acc,none": 0.625,
                    "acc_stderr,none": 0.0775,
                    "exact_match,strict": 0.5,
                    "exact_match_stderr,strict": "N/A",
                }
            },
            "versions": {"capitals": 1.0},
            "n-samples": {"capitals": {"original": 100, "effective": 40}},
        }
    )
    assert found == {
        "capitals": {
            "version": 1.0,
            "n": 40,
            "acc": {"value": 0.625, "stderr": 0.0775},
            "exact_match,strict": {"value": 0.5},
        }
    }


needs_harness = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None,
        reason='lm-evaluation-harness is not installed: pip install -e ".[zeroshot]" -c constraints.txt',
    ),
]


def slow(test):
    for mark in needs_harness:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def connections():
    """Hosts that were looked up or connected to; the harness swallows some errors, so that refusing is not enough."""
    attempts: list[object] = []

    def refuse(*arguments, **_kwargs):
        attempts.append(arguments)
        raise OSError("the network is blocked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield attempts


@pytest.fixture(scope="module")
def questions():
    wheel = yaml.safe_load((ROOT / "params.yaml").read_text())["text"]["calibration"]["wheel"]
    return analogies.items(wheel, N_ITEMS, seed=0)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, questions, connections) -> Project:
    """The trained model, dense and with two masks, evaluated in float32 by the stage itself."""
    import datasets

    directory = tmp_path_factory.mktemp("zero-shot")
    analogies.write_task(directory / "tasks", questions)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["prepare"] |= {"window_tokens": 64, "calibration_windows": 8, "evaluation_windows": 2}
    zero_shot = {"tasks": [analogies.TASK], "include_path": str(directory / "tasks"), "batch_size": 16}
    params["eval"] |= {"dtype": "float32", "zero_shot": zero_shot}
    project = Project(directory, params)
    project.artifacts.mkdir()
    for name in ("model", "text"):
        (project.artifacts / name).symlink_to(ROOT / "artifacts" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", directory / "cache")
        steps = [project.prepare(), project.collect(), project.eval()]
        for recipe in RECIPES[1:]:
            steps += [project.score(recipe), project.prune(recipe, "50pct"), project.eval(recipe, "50pct")]
    for step in steps:
        assert step.exit_code == 0, step.output
    return project


def result_of(project, recipe) -> dict:
    name = "dense.json" if recipe is None else f"{recipe}/50pct.json"
    return json.loads((project.metrics / "eval" / name).read_text())["zero_shot"]


@torch.no_grad()
def naive_answers(model, tokenizer, questions) -> list[int]:
    """Return the choice with the highest sum of log probabilities, one sequence at a time and without the harness."""
    answers = []
    for question in questions:
        start = len(tokenizer(question["prompt"]).input_ids)
        scores = []
        for choice in question["choices"]:
            ids = torch.tensor([tokenizer(f"{question['prompt']} {choice}").input_ids])
            log_probabilities = model(ids).logits[0].double().log_softmax(-1)
            scores.append(sum(log_probabilities[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1])))
        answers.append(max(range(len(scores)), key=scores.__getitem__))
    return answers


@slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_accuracy_is_that_of_plain_log_likelihoods(measured, questions, recipe):
    model = AutoModelForCausalLM.from_pretrained(ROOT / "artifacts/model", dtype=torch.float32).eval()
    if recipe is not None:
        masks, state = MaskFile(measured.mask(recipe, "50pct")), model.state_dict()
        for name in masks.weights:
            state[name] *= torch.from_numpy(masks.keep(name))
    answers = naive_answers(model, AutoTokenizer.from_pretrained(ROOT / "artifacts/model"), questions)
    right = sum(answer == question["answer"] for answer, question in zip(answers, questions, strict=True))
    found = result_of(measured, recipe)["tasks"][analogies.TASK]
    print(f"{recipe or 'dense'}: {right} of {N_ITEMS}, {found}")
    assert found["n"] == N_ITEMS
    assert found["version"] == 1.0
    assert found["acc"]["value"] == pytest.approx(right / N_ITEMS, abs=1e-6)
    share = right / N_ITEMS
    assert found["acc"]["stderr"] == pytest.approx((share * (1 - share) / (N_ITEMS - 1)) ** 0.5, abs=1e-6)


@slow
def test_the_dense_model_is_far_above_chance(measured):
    right = round(result_of(measured, None)["tasks"][analogies.TASK]["acc"]["value"] * N_ITEMS)
    assert binomtest(right, N_ITEMS, 0.25, alternative="greater").pvalue < 1e-6


@slow
def test_nothing_touched_the_network(measured, connections):
    assert result_of(measured, None)["harness"].startswith("lm_eval 0.4.")
    assert connections == []


@slow
def test_an_unknown_task_is_told_with_near_names_and_what_the_directory_holds(tmp_path, questions):
    analogies.write_task(tmp_path / "tasks", questions)
    with pytest.raises(UnknownName) as caught:
        load_tasks(ZeroShotParams(tasks=["analogies", "hellaswagg"], include_path=str(tmp_path / "tasks")))
    message = str(caught.value)
    assert "no task 'hellaswagg'; nearest names: hellaswag" in message
    assert "tasks holds analogies" in message
    with pytest.raises(ParamsError, match=r"include_path: '.*none' is not a directory"):
        load_tasks(ZeroShotParams(tasks=["analogies"], include_path=str(tmp_path / "none")))


@slow
def test_an_unreachable_hub_is_told_with_task_and_dataset(connections, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # no retries
    with pytest.raises(SourceError, match=r"task 'boolq': its data \(dataset aps/super_glue\) cannot be read"):
        load_tasks(ZeroShotParams(tasks=["boolq"]))


@slow
def test_a_metric_that_would_be_downloaded_is_refused(tmp_path, questions):
    analogies.write_task(tmp_path / "tasks", questions)
    path = tmp_path / f"tasks/{analogies.TASK}.yaml"
    path.write_text(path.read_text().replace("metric: acc", "metric: word_count"))
    with pytest.raises(ParamsError, match="metric word_count is not among the harness's own"):
        load_tasks(ZeroShotParams(tasks=["analogies"], include_path=str(tmp_path / "tasks")))
