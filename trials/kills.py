"""Every stage killed at random moments: the earlier output stays whole, and the next run ends as if nothing was.

An uninterrupted run of a step tells what it writes, how long it takes, and how often it opens, renames or deletes a
file below `out/`. By turns, a trial kills in the middle of a write, at one of these events, or after a random time:
loading libraries takes most of a run, and writing a few milliseconds, which no time drawn at random would hit.
A run that ended before its kill is drawn again: only kills count.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import psutil

from trials.building import run_here
from trials.dying import AFTER, BEFORE, WHILE, Moment, kill_all
from trials.steps import METRICS, Step, digests

_ROOT = Path(__file__).resolve().parent.parent
_LITTER = (".partial", ".old", ".lock")
_KINDS = ("in a write", "at an event after", "at a time", "at an event while", "at a time of its writing")
_INSIDE = ("in a write", "at an event while")
_MOST_DRAWS = 20
_MOST_SECONDS = 600


@dataclass
class Found:
    """What the trials of one step found."""

    kills: int = 0
    killed: dict[str, int] = field(default_factory=lambda: dict.fromkeys((BEFORE, WHILE, AFTER), 0))
    """When, by what lay in `out/`: no write begun; something half-written; the first output in its place."""
    drawn_again: int = 0
    """So many runs ended before they were killed."""
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Drawn:
    """When to kill: at a moment that the command finds itself, or after so many seconds."""

    kind: str
    moment: Moment
    seconds: float | None = None

    def __str__(self) -> str:
        """Say it for a failure."""
        if self.seconds is not None:
            return f"killed {self.kind}: after {self.seconds:.3f} s"
        size = "" if self.moment.limit is None else f", {self.moment.limit} bytes"
        return f"killed {self.kind}: event {self.moment.event} {self.moment.state}{size}"


def kill_trials(root: Path, steps: Sequence[Step], trials: int, seed: int) -> dict[str, dict[str, Any]]:
    """Kill so many times, the steps by turns.

    Args:
        root: of a project that was built; the current directory.
        steps: to kill.
        trials: kills of all steps together.
        seed: of the moments.

    Returns:
        Step -> the fields of `Found`.
    """
    drawn, found = random.Random(seed), {step.name: Found() for step in steps}
    kinds = {step.name: cycle(_KINDS) for step in steps}
    runs: dict[str, _Uninterrupted] = {}
    for number, step in zip(range(trials), cycle(steps)):
        one = found[step.name]
        if step.name not in runs:
            runs[step.name] = _Uninterrupted(root, step)
        known = len(one.failures)
        kind = next(kinds[step.name])
        if one.kills and not one.killed[WHILE]:  # a limit may have torn a file of another output, or the lock
            kind = _INSIDE[one.kills % 2]
        _trial(runs[step.name], kind, drawn, one)
        said = "; ".join(one.failures[known:]) or "all right"
        click.echo(f"{number + 1}/{trials} {step.name}: {one.killed}, {said}", err=True)
    return {name: asdict(one) for name, one in found.items()}


def faults(one: dict[str, Any]) -> list[str]:
    """Return the failures of a step; that it was never killed while it wrote is one."""
    return one["failures"] + ([] if one["killed"][WHILE] else ["never killed while writing"])


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    columns = ["step", "kills", "before writing", "while", "after", "drawn again", "result"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    rows = {name: [one["kills"], *one["killed"].values(), one["drawn_again"]] for name, one in found.items()}
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(map(str, row))} | {'; '.join(faults(found[name])) or 'all right'} |")
    total = [sum(column) for column in zip(*rows.values(), strict=True)]
    return "\n".join([*lines, f"| all | {' | '.join(map(str, total))} | |"])


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
        self.moment = {"out": str(self.out.resolve()), "first": step.outs[0], "starter": os.getpid()}
        log, begin = root / "events", time.time()
        log.unlink(missing_ok=True)
        code, said = _run(self, _Drawn("never", Moment(**self.moment, log=str(log))))
        assert code == 0, said
        self.seconds = time.time() - begin
        lines = [line.split() for line in log.read_text(encoding="ascii").splitlines()]
        self.first_event = float(lines[0][0]) - begin
        self.events = Counter(state for _, state in lines)
        self.wanted = digests(root, step)
        first = self.out / step.outs[0]
        self.sizes = [size for path in (first, *first.rglob("*")) if path.is_file() and (size := path.stat().st_size)]
        same = [name for name in step.outs if name != METRICS and self.wanted[name] == self.earlier[name]]
        assert not same, f"{step.name}: {same} would not show which run wrote it"

    def reset(self) -> None:
        """Put the earlier output in its place."""
        _empty(self.out)
        if self.kept:
            shutil.copytree(self.kept, self.out, dirs_exist_ok=True)

    def took(self, seconds: float) -> None:
        """Expect of the next run what this one took: a machine that was busy at the first is so no more."""
        self.first_event *= seconds / self.seconds
        self.seconds = seconds

    def draw(self, kind: str, drawn: random.Random) -> _Drawn:
        """Draw a moment of a kind; of a first output that is never half-written, an event before it is in its place."""
        if "time" in kind:
            begin = self.first_event if "writing" in kind else 0.0
            return _Drawn(kind, Moment(**self.moment), drawn.uniform(begin, self.seconds))
        state = AFTER if "after" in kind else WHILE
        limit = drawn.randrange(drawn.choice(self.sizes)) if kind == "in a write" else None
        if not self.events[state]:
            state = BEFORE
        event = drawn.randrange(self.events[state])
        # What is written in one call is first seen after it; of a single file that is all there is to write.
        if limit is not None and (len(self.sizes) == 1 or drawn.random() < 0.5):
            state, event = BEFORE, self.events[BEFORE] - 1
        return _Drawn(kind, Moment(**self.moment, state=state, event=event, limit=limit))


def _trial(run: _Uninterrupted, kind: str, drawn: random.Random, found: Found) -> None:
    for _ in range(_MOST_DRAWS):
        run.reset()
        where = run.draw(kind, drawn)
        begin = time.time()
        code, said = _run(run, where)
        if code != 0:
            break
        run.took(time.time() - begin)
        found.drawn_again += 1
    if code != -signal.SIGKILL:
        found.failures.append(f"{where}: ended with {code}: {said[-300:]}")
        return
    found.kills += 1
    left = digests(run.root, run.step)
    found.killed[_when(run, left)] += 1
    for name, held in left.items():
        if held not in (run.earlier[name], run.wanted[name]):
            found.failures.append(f"{where}: {name} is neither the earlier nor the new one")
    _run_again(run, str(where), left, found)


def _run_again(run: _Uninterrupted, where: str, left: dict[str, str], found: Found) -> None:
    code, said = _run(run, _Drawn("never", Moment(**run.moment)))
    refused = run.step.needs_absent and left == run.wanted
    if code != (1 if refused else 0) or (refused and "already exists" not in said):
        found.failures.append(f"{where}: the next run ended with {code}: {said[-300:]}")
    again = digests(run.root, run.step)
    differing = [name for name in again if again[name] != run.wanted[name]]
    if differing:
        found.failures.append(f"{where}: the next run wrote another {', '.join(differing)}")
    litter = sorted(path.name for path in run.out.iterdir() if path.name not in (*run.step.outs, *run.step.keeps))
    litter += [str(path) for path in run.out.rglob("*") if path.suffix in _LITTER and path.parent != run.out]
    if litter:
        found.failures.append(f"{where}: the next run left {', '.join(litter)}")


def _when(run: _Uninterrupted, left: dict[str, str]) -> str:
    """Return when a run was killed, by what lies in `out/`."""
    first = run.step.outs[0]
    if left[first] == run.wanted[first]:
        return AFTER
    half_written = any(path.suffix == ".partial" for path in run.out.rglob("*"))
    return WHILE if half_written or left[first] != run.earlier[first] else BEFORE


def _run(run: _Uninterrupted, drawn: _Drawn) -> tuple[int, str]:
    """Run a step to its end or its kill; return its exit code and what it said."""
    environment = {**os.environ, "PYTHONPATH": f"{_ROOT / 'pipeline'}:{_ROOT}", **drawn.moment.environment()}
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", *run.step.launcher(), "trials.dying", *run.step.command()]
    with subprocess.Popen(command, cwd=run.root, env=environment, **pipes) as process:
        try:
            _, said = process.communicate(timeout=_MOST_SECONDS if drawn.seconds is None else drawn.seconds)
        except subprocess.TimeoutExpired:
            kill_all(psutil.Process(process.pid))
            _, said = process.communicate()
            if drawn.seconds is None:
                return 1, f"did not end within {_MOST_SECONDS} s: {said}"
    return process.returncode, said


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
