"""Every stage killed at random moments: the earlier output stays whole, and the next run ends as if nothing was.

Of a step, an uninterrupted run tells how long it takes until it holds its outputs (`.lock`), until it writes
(`.partial`), and in all. By turns, a trial kills at a moment drawn uniformly of its time from the first
write on, of its time from the lock on, and of the whole run, since loading libraries takes most of a run.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import click

from trials.building import run_here
from trials.steps import Step, digests

_ROOT = Path(__file__).resolve().parent.parent
_LITTER = (".partial", ".old", ".lock")
_MOMENTS = ("partial", "lock", "start")
_POLL_SECONDS = 0.0005


@dataclass
class Found:
    """What the trials of one step found."""

    trials: int = 0
    killed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("before", "while", "after", "ended"), 0))
    """When, by what lay in `out/`: no write begun; something half-written; the new output in its place; too late."""
    failures: list[str] = field(default_factory=list)


def kill_trials(root: Path, steps: Sequence[Step], trials: int, seed: int) -> dict[str, dict[str, Any]]:
    """Run so many trials, of the steps by turns.

    Args:
        root: of a project that was built; the current directory.
        steps: to kill.
        trials: of all steps together.
        seed: of the moments.

    Returns:
        Step -> the fields of `Found`.
    """
    drawn, found = random.Random(seed), {step.name: Found() for step in steps}
    prepared = {step.name: _Uninterrupted(root, step) for step in steps[:trials]}
    moments = {step.name: cycle(_MOMENTS) for step in steps}
    for number, step in zip(range(trials), cycle(steps)):
        _trial(prepared[step.name], next(moments[step.name]), drawn.random(), found[step.name])
        one = found[step.name]
        click.echo(f"{number + 1}/{trials} {step.name}: {one.killed}, {len(one.failures)} failures", err=True)
    return {name: asdict(one) for name, one in found.items() if one.trials}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    columns = ["step", "trials", "before writing", "while", "after", "ended first", "result"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, one in found.items():
        result = "; ".join(one["failures"]) or "all right"
        lines.append(f"| {name} | {one['trials']} | {' | '.join(map(str, one['killed'].values()))} | {result} |")
    return "\n".join(lines)


class _Uninterrupted:
    """A step's earlier output, what it writes, and when."""

    def __init__(self, root: Path, step: Step) -> None:
        self.root, self.step, self.out = root, step, root / "out"
        _empty(self.out)
        self.kept: Path | None = None
        if not step.needs_absent:
            run_here(step, "earlier.yaml")
            if step.name == "report":  # no setting changes what it says of one recipe
                (self.out / "report/earlier").touch()
            self.kept = root / "earlier" / step.name.replace(" ", "-")
            shutil.copytree(self.out, self.kept)
        self.earlier = digests(root, step)
        begin, self.seconds = time.perf_counter(), dict.fromkeys(_MOMENTS, 0.0)
        with _started(step, root) as process:
            for moment in ("lock", "partial"):
                _wait_for(self.out, moment, process)
                self.seconds[moment] = time.perf_counter() - begin
            _, said = process.communicate()
        self.total = time.perf_counter() - begin
        assert process.returncode == 0, said
        self.wanted = digests(root, step)
        same = [name for name in step.outs if name != "metrics.json" and self.wanted[name] == self.earlier[name]]
        assert not same, f"{step.name}: {same} would not show which run wrote it"

    def reset(self) -> None:
        """Put the earlier output in its place."""
        _empty(self.out)
        if self.kept:
            shutil.copytree(self.kept, self.out, dirs_exist_ok=True)


def _trial(run: _Uninterrupted, moment: str, share: float, found: Found) -> None:
    run.reset()
    delay = share * (run.total - run.seconds[moment])
    with _started(run.step, run.root) as process:
        if moment != "start":
            _wait_for(run.out, moment, process)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
    where = f"killed {delay:.3f} s after {moment}"
    found.trials += 1
    if process.returncode not in (0, -signal.SIGKILL):
        found.failures.append(f"{where}: ended with {process.returncode}: {said[-300:]}")
    found.killed[_when(run, process.returncode)] += 1
    left = digests(run.root, run.step)
    for name, held in left.items():
        if held not in (run.earlier[name], run.wanted[name]):
            found.failures.append(f"{where}: {name} is neither the earlier nor the new one")
    _run_again(run, where, left, found)


def _run_again(run: _Uninterrupted, where: str, left: dict[str, str], found: Found) -> None:
    with _started(run.step, run.root) as process:
        _, said = process.communicate()
    refused = run.step.needs_absent and left == run.wanted and "already exists" in said
    if process.returncode != (1 if refused else 0):
        found.failures.append(f"{where}: the next run ended with {process.returncode}: {said[-300:]}")
    again = digests(run.root, run.step)
    differing = [name for name in again if again[name] != run.wanted[name]]
    if differing:
        found.failures.append(f"{where}: the next run wrote another {', '.join(differing)}")
    litter = sorted(path.name for path in run.out.iterdir() if path.name not in run.step.outs)
    litter += [str(path) for path in run.out.rglob("*") if path.suffix in _LITTER and path.parent != run.out]
    if litter:
        found.failures.append(f"{where}: the next run left {', '.join(litter)}")


def _when(run: _Uninterrupted, code: int) -> str:
    """Return when a run was killed, by what lies in `out/`."""
    if code == 0:
        return "ended"
    left = digests(run.root, run.step)
    first = run.step.outs[0]
    if left[first] == run.wanted[first]:
        return "after"
    return "while" if any(path.suffix == ".partial" for path in run.out.iterdir()) else "before"


def _started(step: Step, root: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{_ROOT / 'pipeline'}:{_ROOT}"}
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", *step.command()], cwd=root, env=environment, **pipes)


def _wait_for(out: Path, suffix: str, process: subprocess.Popen[str]) -> None:
    """Wait until something with that suffix lies in `out/`, or the process has ended."""
    while process.poll() is None and not any(name.endswith(f".{suffix}") for name in os.listdir(out)):  # noqa: PTH208
        time.sleep(_POLL_SECONDS)


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
