"""Every command that writes an output: how it is started, what it reads from `artifacts/` and writes to `out/`."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

METRICS = "metrics.json"
_COSTS = {"seconds", "process_seconds", "peak_rss_mib"}
"""Of metrics: they differ from run to run."""


@dataclass(frozen=True)
class Step:
    """One command, run from the project's root."""

    name: str
    module: str
    """Run as `python -m`."""
    arguments: tuple[str, ...]
    outs: tuple[str, ...]
    """Names in `out/`."""
    resumes: bool = False
    """Whether an interrupted run leaves its work beside, for the next one."""
    needs_absent: bool = False
    """Whether it refuses to write where something is."""

    def command(self, params: str = "params.yaml") -> list[str]:
        """Return the arguments of `python -m`; a stage reads that parameter file."""
        own = ["--params", params] if self.module.startswith("stages.") else []
        return [self.module, *self.arguments, *own]


def _stage(name: str, arguments: str, outs: Sequence[str], title: str = "", resumes: bool = False) -> Step:
    given = (*arguments.split(), "--metrics", f"out/{METRICS}")
    return Step(title or name, f"stages.{name}", given, (*outs, METRICS), resumes)


_MODEL = "--model artifacts/model"
_CALIBRATION = f"{_MODEL} --tokens artifacts/calibration"
STEPS = (
    _stage("fetch", "model --out out/model", ["model"], "fetch model"),
    _stage("fetch", "text --out out/text", ["text"], "fetch text"),
    _stage(
        "prepare",
        f"{_MODEL} --text artifacts/text --calibration out/calibration --evaluation out/evaluation",
        ["calibration", "evaluation"],
    ),
    _stage("collect", f"{_CALIBRATION} --out out/statistics", ["statistics"], resumes=True),
    _stage(
        "score",
        "--recipe wanda --statistics artifacts/statistics --out out/scores.safetensors",
        ["scores.safetensors"],
    ),
    _stage(
        "prune",
        f"--pattern 50pct {_MODEL} --scores artifacts/scores.safetensors --out out/mask.safetensors",
        ["mask.safetensors"],
    ),
    _stage(
        "eval",
        f"{_MODEL} --tokens artifacts/evaluation --losses out/losses.safetensors",
        ["losses.safetensors"],
    ),
    _stage(
        "sequential",
        f"--by wanda 50pct {_CALIBRATION} --statistics out/through --out out/by-layer.safetensors",
        ["through", "by-layer.safetensors"],
        resumes=True,
    ),
    _stage("report", "--artifacts reported --measured reported/metrics --out out/report", ["report"]),
    Step(
        "export",
        "neuronrank",
        ("export", "--model", "artifacts/model", "--mask", "artifacts/mask.safetensors", "--out", "out/pruned"),
        ("pruned",),
        needs_absent=True,
    ),
    Step(
        "merge",
        "neuronrank",
        ("merge", "artifacts/statistics", "artifacts/second", "--out", "out/merged"),
        ("merged",),
        resumes=True,
        needs_absent=True,
    ),
)
SECOND = _stage(
    "collect", f"{_MODEL} --tokens artifacts/second-calibration --fitted-on artifacts/statistics --out out/second", []
)
"""Statistics that `merge` joins to the first."""


def digest(path: Path) -> str:
    """Return what an output holds: a SHA-256 of all names and bytes below it, `absent`, or metrics without costs."""
    if not path.exists():
        return "absent"
    if path.name == METRICS:
        content = json.loads(path.read_bytes())
        return json.dumps({key: value for key, value in content.items() if key not in _COSTS}, sort_keys=True)
    found = hashlib.sha256()
    for file in [path, *sorted(path.rglob("*"))]:
        found.update(f"{file.relative_to(path)}\0{'file' if file.is_file() else 'directory'}\0".encode())
        if file.is_file():
            content = file.read_bytes()
            found.update(f"{len(content)}\0".encode() + content)
    return found.hexdigest()


def digests(root: Path, step: Step) -> dict[str, str]:
    """Return the digest of every output of a step, by its name in `out/`."""
    return {name: digest(root / "out" / name) for name in step.outs}
