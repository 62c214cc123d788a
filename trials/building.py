"""What the steps read, made once: a finished pipeline in `artifacts/`, and what the report reads in `reported/`."""

import contextlib
import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import click

from trials.project import make_project
from trials.steps import METRICS, SECOND, STEPS, Step


def run_here(step: Step, params: str = "params.yaml") -> None:
    """Run a step in this process, from the project's root."""
    command, arguments = command_of(step, params)
    command.main(arguments, prog_name=step.module, standalone_mode=False)


def command_of(step: Step, params: str = "params.yaml") -> tuple[click.Command, list[str]]:
    """Return a step's command and its arguments."""
    module, *arguments = step.command(params)
    command = importlib.import_module("neuronrank.cli" if module == "neuronrank" else module).main
    assert isinstance(command, click.Command)
    return command, arguments


@contextlib.contextmanager
def built(root: Path) -> Iterator[None]:
    """Make the project, run every step once in `root`, and stay there; `out/` is empty."""
    make_project(root)
    steps = {step.name: step for step in STEPS}
    with contextlib.chdir(root):
        _keep(steps["fetch model"])
        for name in ("fetch text", "prepare"):
            _keep(steps[name], params="second.yaml", rename={"calibration": "second-calibration"})
        for name in ("text", "evaluation"):
            shutil.rmtree(f"artifacts/{name}")
        _keep(steps["fetch text"])
        for name, metrics in (("prepare", ""), ("collect", ""), ("score", "score"), ("prune", "prune/wanda")):
            _keep(steps[name], metrics)
        for step in (SECOND, steps["run"], steps["export"], steps["export-imatrix"]):
            _keep(step)
        _report_inputs(steps["eval"])
        yield


def _keep(step: Step, metrics: str = "", params: str = "params.yaml", rename: dict[str, str] | None = None) -> None:
    """Run a step and keep what it writes in `artifacts/`, its metrics where the report looks for them."""
    run_here(step, params)
    for path in sorted(Path("out").iterdir()):
        target = Path("artifacts") / (rename or {}).get(path.name, path.name)
        if path.name == METRICS:
            target = Path("reported/metrics") / metrics / {"score": "wanda.json"}.get(metrics, "50pct.json")
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


def _report_inputs(evaluate: Step) -> None:
    """Lay out `reported/` as the report reads it: losses, masks, scores, and the metrics of score, prune and eval."""
    for name in ("losses/wanda", "masks/wanda", "scores", "metrics/eval/wanda"):
        Path("reported", name).mkdir(parents=True)
    shutil.copyfile("artifacts/scores.safetensors", "reported/scores/wanda.safetensors")
    shutil.copyfile("artifacts/mask.safetensors", "reported/masks/wanda/50pct.safetensors")
    run_here(evaluate)
    dense = Path("reported/losses/dense.safetensors")
    Path("out/losses.safetensors").rename(dense)
    Path("out", METRICS).rename("reported/metrics/eval/dense.json")
    masked = ("--mask", "artifacts/mask.safetensors", "--dense", str(dense))
    run_here(Step("eval", evaluate.module, (*evaluate.arguments, *masked), evaluate.outs))
    Path("out/losses.safetensors").rename("reported/losses/wanda/50pct.safetensors")
    Path("out", METRICS).rename("reported/metrics/eval/wanda/50pct.json")
