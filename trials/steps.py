"""Every command that writes an output: how it is started, what it reads from `artifacts/` and writes to `out/`."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METRICS = "metrics.json"
_WITH_COSTS = {METRICS, "summary.json", "table.json"}
_COSTS = {"seconds", "process_seconds", "peak_rss_mib", "forward_pass"}
"""Of those files: they differ from run to run."""


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
    keeps: tuple[str, ...] = ()
    """Names in `out/` of what it keeps for later runs, and no killed run need have."""
    processes: int = 1

    def command(self, params: str = "params.yaml") -> list[str]:
        """Return the arguments of `python -m`; what always replaces its output reads that parameter file."""
        return [self.module, *self.arguments, *([] if self.needs_absent else ["--params", params])]

    def launcher(self) -> list[str]:
        """Return what comes between `python -m` and a module."""
        if self.processes == 1:
            return []
        return ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes), "-m"]


def _stage(name: str, arguments: str, outs: Sequence[str], title: str = "", processes: int = 1) -> Step:
    given = (*arguments.split(), "--metrics", f"out/{METRICS}")
    resumes = name in {"collect", "sequential"}
    return Step(title or name, f"stages.{name}", given, (*outs, METRICS), resumes, processes=processes)


def _new(name: str, arguments: str, out: str, title: str = "", keeps: tuple[str, ...] = ()) -> Step:
    """Return a command that refuses to write where something is."""
    resumes = name in {"merge", "import-imatrix"}
    return Step(
        title or name, "neuronrank", (name, *arguments.split()), (out,), resumes, needs_absent=True, keeps=keeps
    )


_MODEL = "--model artifacts/model"
_CALIBRATION = f"{_MODEL} --tokens artifacts/calibration"
_RUN = (
    "--model source/model --prune-method neuronrank_fisher --neuronrank-max-classes 6 --sparsity-type structured "
    "--text source/calibration.jsonl --nsamples 8 --seqlen 16 --seed 1 --dtype float32"
)
STEPS = (
    _stage("fetch", "model --out out/model", ["model"], "fetch model"),
    _stage("fetch", "text --out out/text", ["text"], "fetch text"),
    _stage(
        "prepare",
        f"{_MODEL} --text artifacts/text --calibration out/calibration --evaluation out/evaluation",
        ["calibration", "evaluation"],
    ),
    _stage("collect", f"{_CALIBRATION} --out out/statistics", ["statistics"]),
    _stage("collect", f"{_CALIBRATION} --out out/statistics", ["statistics"], "collect, 2 processes", processes=2),
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
    ),
    _stage("report", "--artifacts reported --measured reported/metrics --out out/report", ["report"]),
    _new("export", f"{_MODEL} --mask artifacts/mask.safetensors --out out/pruned", "pruned"),
    _new(
        "export",
        f"{_MODEL} --mask artifacts/saved/mask.safetensors --compact --out out/compact",
        "compact",
        "export --compact",
    ),
    _new("merge", "artifacts/statistics artifacts/second --out out/merged", "merged"),
    _new("import-imatrix", f"artifacts/imatrix.gguf {_MODEL} --out out/imported", "imported"),
    _new("export-imatrix", "artifacts/statistics --out out/imatrix.gguf", "imatrix.gguf"),
    _new("run", f"{_RUN} --save out/saved --cache-dir out/cache", "saved", keeps=("cache",)),
    Step(
        "table",
        "neuronrank",
        ("table", *_MODEL.split(), "--tokens", "artifacts", "--results", "out/table.json"),
        ("table.json",),
    ),
)
SECOND = _stage(
    "collect", f"{_MODEL} --tokens artifacts/second-calibration --fitted-on artifacts/statistics --out out/second", []
)
"""Statistics that `merge` joins to the first."""


def digest(path: Path) -> str:
    """Return what an output holds, without what runs cost: a SHA-256 of all names and bytes below it, or `absent`."""
    if not path.exists():
        return "absent"
    found = hashlib.sha256()
    for file in [path, *sorted(path.rglob("*"))]:
        found.update(f"{file.relative_to(path)}\0{'file' if file.is_file() else 'directory'}\0".encode())
        if file.is_file():
            content = _without_costs(file.read_bytes()) if file.name in _WITH_COSTS else file.read_bytes()
            found.update(f"{len(content)}\0".encode() + content)
    return found.hexdigest()


def _without_costs(content: bytes) -> bytes:
    """Return a JSON object without the fields that differ from run to run; what is none, as it is."""

    def kept(fields: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in fields.items() if key not in _COSTS}

    try:
        return json.dumps(json.loads(content, object_hook=kept), sort_keys=True).encode()
    except ValueError:
        return content


def digests(root: Path, step: Step) -> dict[str, str]:
    """Return the digest of every output of a step, by its name in `out/`."""
    return {name: digest(root / "out" / name) for name in step.outs}
