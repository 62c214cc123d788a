"""Zero-shot accuracy of a model in memory, by lm-evaluation-harness: the optional extra `zeroshot`.

Nothing of the harness is imported while `eval.zero_shot.tasks` is empty. No code is fetched from a hub: datasets with
scripts are refused by `datasets` itself, metrics that would be downloaded are refused here. A YAML file below
`include_path` may name Python functions beside it; those are run.

Source: Gao et al., lm-evaluation-harness 0.4.13, github.com/EleutherAI/lm-evaluation-harness.
Differs: `n_fewshot` holds for every task, also for one whose own file says otherwise.
"""

import difflib
import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt
from torch import nn

from neuronrank.errors import ParamsError, SourceError, UnknownName
from neuronrank.params import Section

USUAL_SEVEN = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""The tasks of Sun et al. 2023, arXiv:2306.11695, table 2, by the harness's names; `usual_seven` stands for them."""

N_RESAMPLES = 1000
"""Of the bootstrap, for metrics whose standard error has no closed form; accuracies have one."""

Tasks = dict[str, dict[str, Any]]
"""What the harness evaluates: its `tasks`, `groups` and `group_map`, by name; empty when none were asked for."""


class ZeroShotParams(Section):
    """Which tasks, and how; no task turns zero-shot evaluation off."""

    tasks: list[str] = Field(default_factory=list)
    include_path: str | None = None
    """A directory with task files of one's own; when it holds all tasks, those of the harness are not indexed."""
    limit: PositiveInt | None = None
    """First so many items of each task; null takes all."""
    n_fewshot: int = Field(default=0, ge=0)
    batch_size: PositiveInt = 8
    seed: int = Field(default=0, ge=0)

    @property
    def names(self) -> list[str]:
        """The tasks, with `usual_seven` spelled out."""
        return [name for task in self.tasks for name in (USUAL_SEVEN if task == "usual_seven" else (task,))]


def load_tasks(params: ZeroShotParams) -> Tasks:
    """Find the tasks and their data, so that what is missing is told before a model is loaded.

    Raises:
        ParamsError: the extra is not installed, `include_path` is no directory, or a task would run foreign code.
        UnknownName: no such task.
        SourceError: a task's data cannot be read.
    """
    if not params.names:
        return {}
    _require_harness()
    from transformers import set_seed

    set_seed(params.seed)  # some tasks shuffle their choices while they load
    manager = _task_manager(params)
    loaded: Tasks = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in params.names:
        for kind, found in _load(manager, name).items():
            loaded[kind].update(found)
    for name, task in loaded["tasks"].items():
        _refuse_foreign_code(name, task)
        task.set_config(key="num_fewshot", value=params.n_fewshot)
        task.set_fewshot_seed(seed=params.seed)
    return loaded


def evaluate_tasks(model: nn.Module, tokenizer: Any, tasks: Tasks, params: ZeroShotParams) -> dict[str, Any]:
    """Evaluate a model, dense or masked, on tasks.

    Args:
        model: a causal language model of transformers, as it is in memory; nothing is loaded.
        tokenizer: its tokenizer, of transformers.
        tasks: of `load_tasks`.
        params: the same as there.

    Returns:
        `harness`: its version; `tasks`: for each task its `version`, `n` items, and `{value, stderr}` of every
        metric, as shares of 1, without `stderr` where there is none.
    """
    import lm_eval
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import set_seed

    set_seed(params.seed)
    results = evaluate(
        lm=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=params.batch_size),
        task_dict=tasks,
        limit=params.limit,
        bootstrap_iters=N_RESAMPLES,
        log_samples=False,
    )
    return {"harness": f"lm_eval {lm_eval.__version__}", "tasks": summarise(results)}


def summarise(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the harness's results by task: version, n, and value and standard error of every metric.

    The harness calls a metric `acc,none`: the name and a filter of the model's answers, left out here when `none`.
    """
    tasks = {}
    for name, values in results["results"].items():
        entry: dict[str, Any] = {"version": results["versions"].get(name)}
        if name in results["n-samples"]:  # not for a group of tasks
            entry["n"] = results["n-samples"][name]["effective"]
        for key, value in values.items():
            metric, comma, answers = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            measured = {"value": value, "stderr": values.get(f"{metric}_stderr,{answers}")}
            entry[key.removesuffix(",none")] = {
                what: round(float(number), 6) for what, number in measured.items() if isinstance(number, (int, float))
            }
        tasks[name] = entry
    return tasks


def _require_harness() -> None:
    try:
        importlib.import_module("lm_eval.evaluator")
        importlib.import_module("lm_eval.models.huggingface")
    except ModuleNotFoundError as err:
        raise ParamsError(
            f"eval.zero_shot.tasks: need lm-evaluation-harness, but module {err.name!r} is not installed. "
            'Run: pip install -e ".[zeroshot]" -c constraints.txt, or leave the tasks empty'
        ) from err
    logging.getLogger("lm_eval").setLevel(logging.WARNING)


def _task_manager(params: ZeroShotParams) -> Any:
    """Return the harness's index of the tasks: only our own where they suffice, as its own takes ten seconds."""
    from lm_eval.tasks import TaskManager

    own: list[str] = []
    if params.include_path is not None:
        if not Path(params.include_path).is_dir():
            raise ParamsError(f"eval.zero_shot.include_path: {params.include_path!r} is not a directory")
        manager = TaskManager(include_path=params.include_path, include_defaults=False)
        own = manager.all_tasks
        if set(params.names) <= set(own):
            return manager
    manager = TaskManager(include_path=params.include_path)
    unknown = [name for name in params.names if name not in manager.task_index]
    if unknown:
        lines = [_unknown(name, manager.all_tasks) for name in unknown]
        if params.include_path is not None:
            lines.append(f"{params.include_path} holds {', '.join(own) or 'no task file that the harness can read'}")
        raise UnknownName("\n".join(lines))
    return manager


def _unknown(name: str, known: list[str]) -> str:
    near = ", ".join(difflib.get_close_matches(name, known, n=5)) or "none"
    return f"eval.zero_shot.tasks: no task {name!r}; nearest names: {near}. Run: lm-eval ls tasks"


def _load(manager: Any, name: str) -> dict[str, dict[str, Any]]:
    from datasets.exceptions import DatasetsError

    try:
        with _no_calls_home():
            found: dict[str, dict[str, Any]] = manager.load([name])
    except (DatasetsError, OSError, RuntimeError, ValueError) as err:
        dataset = (manager.task_index[name].cfg or {}).get("dataset_path")
        raise SourceError(
            f"zero-shot task {name!r}: its data ({f'dataset {dataset}' if dataset else 'several datasets'}) cannot be "
            f"read: {' '.join(str(err).split())}. Check the network, or use tasks with local data (README, Zero-shot)"
        ) from err
    return found


@contextmanager
def _no_calls_home() -> Iterator[None]:
    """Refuse metrics that `evaluate` would download and run, and do not let `datasets` report that it was used."""
    import datasets
    import evaluate

    def refuse(name: str, *_args: object, **_kwargs: object) -> None:
        raise ParamsError(f"zero-shot metric {name!r}: is code that would be downloaded and run, which is refused")

    load, counts = evaluate.load, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    evaluate.load, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = refuse, False
    try:
        yield
    finally:
        evaluate.load, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = load, counts


def _refuse_foreign_code(name: str, task: Any) -> None:
    # the harness swallows our refusal and leaves the metric without a function
    missing = [key for key, function in getattr(task, "_metric_fn_list", {}).items() if function is None]
    if missing and task.config.process_results is None:
        raise ParamsError(
            f"zero-shot task {name!r}: metric {', '.join(missing)} is not among the harness's own; code from a hub is "
            f"not run"
        )
    if getattr(task, "UNSAFE_CODE", False):
        raise ParamsError(f"zero-shot task {name!r}: runs code that the model writes, which is refused")
