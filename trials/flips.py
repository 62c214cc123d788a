"""Single bytes changed in every kind of artifact of ours: `verify` must tell, no command go on with other ones.

The byte is drawn from a file drawn uniformly, by turns, or from all bytes of the artifact: most bytes lie in a few
large chunks, most kinds of bytes in small files. Of a model, which is not in a format of ours, those bytes are drawn
that its description is of: the description itself, the tokenizer, and the data of the weights.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner, Result

from neuronrank.safetensors_header import read_safetensors_header
from trials.building import command_of
from trials.steps import STEPS, digest


@dataclass(frozen=True)
class Kind:
    """An artifact that is damaged, and the command that reads it."""

    name: str
    path: str
    reader: str
    """A step; none where no command of ours reads it."""
    weights: str = ""
    """Where the weights lie that it describes."""

    @property
    def title(self) -> str:
        """Artifact and reader."""
        return f"{self.name}, read by {self.reader}" if self.reader else self.name


KINDS = (
    Kind("model", "artifacts/model", "export", "source/model"),
    Kind("statistics", "artifacts/statistics", "score"),
    Kind("scores", "artifacts/scores.safetensors", "prune"),
    Kind("mask", "artifacts/mask.safetensors", "export"),
    Kind("model", "artifacts/model", "prune", "source/model"),
    Kind("tokens", "artifacts/calibration", "collect"),
    Kind("losses", "reported/losses/wanda/50pct.safetensors", "report"),
    Kind("exported model", "artifacts/pruned", ""),
)


@dataclass
class Found:
    """What the flips of one kind of artifact found."""

    flips: int = 0
    refused: int = 0
    """So many runs of the reading command ended with an error."""
    unharmed: int = 0
    """So many wrote what they write of the whole artifact: they did not read the byte."""
    failures: list[str] = field(default_factory=list)


def faults(title: str, one: dict[str, Any]) -> list[str]:
    """Return the failures of a kind; that nothing was tried is one, and that its reader never refused."""
    untried = ["no byte was changed"] if not one["flips"] else []
    blind = ["its reader never refused"] if one["flips"] and "read by" in title and not one["refused"] else []
    return one["failures"] + untried + blind


def flip_trials(trials: int, seed: int) -> dict[str, dict[str, Any]]:
    """Change so many bytes, one at a time, of the kinds by turns; the project is in the current directory.

    Args:
        trials: of all kinds together.
        seed: of files, places and values.

    Returns:
        `Kind.title` -> the fields of `Found`.
    """
    drawn, found = random.Random(seed), {kind.title: Found() for kind in KINDS}
    wanted = {kind.title: _wanted(kind) for kind in KINDS}
    places = {kind.title: cycle((_of_any_file, _of_all_bytes)) for kind in KINDS}
    for number, kind in zip(range(trials), cycle(KINDS)):
        _trial(kind, wanted[kind.title], next(places[kind.title]), drawn, found[kind.title])
        if (number + 1) % 100 == 0:
            failures = sum(len(one.failures) for one in found.values())
            click.echo(f"{number + 1}/{trials}: {failures} failures", err=True)
    return {title: asdict(one) for title, one in found.items()}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = ["| artifact | bytes changed | reader refused | reader unharmed | result |", "|---|---|---|---|---|"]
    for title, one in found.items():
        result = "; ".join(faults(title, one)[:5]) or "all noticed"
        lines.append(f"| {title} | {one['flips']} | {one['refused']} | {one['unharmed']} | {result} |")
    return "\n".join(lines)


def _wanted(kind: Kind) -> str:
    """Return the digest of what the reading command writes of the whole artifact, which it and `verify` must accept."""
    done = _run(["verify", kind.path])
    assert done.exit_code == 0, done.output
    if not kind.reader:
        return ""
    done, written = _read(kind)
    assert done.exit_code == 0, done.output
    return written


def _trial(kind: Kind, wanted: str, place: Callable[..., tuple[Path, int]], drawn: random.Random, found: Found) -> None:
    path, at = place(_guarded(kind), drawn)
    whole = path.read_bytes()
    value = whole[at] ^ drawn.randrange(1, 256)
    where = f"{path} byte {at} of {len(whole)}: {whole[at]:#04x} -> {value:#04x}"
    path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
    try:
        found.flips += 1
        verified = _run(["verify", kind.path])
        if not _has_faults(verified):
            found.failures.append(f"{where}: verify ended with {verified.exit_code}, {verified.exception!r}")
        if not kind.reader:
            return
        done, written = _read(kind)
        if _is_refusal(done):
            found.refused += 1
        elif done.exit_code == 0 and written == wanted:
            found.unharmed += 1
        else:
            found.failures.append(f"{where}: {kind.reader} ended with {done.exit_code}, {done.exception!r}")
    finally:
        path.write_bytes(whole)


def _guarded(kind: Kind) -> dict[Path, range]:
    """Return file -> the places of the bytes whose change must be noticed."""
    found = sorted(path for path in (Path(kind.path), *Path(kind.path).rglob("*")) if path.is_file())
    places = {path: range(path.stat().st_size) for path in found}
    if kind.weights:
        for path in sorted(Path(kind.weights).glob("*.safetensors")):
            places[path] = range(read_safetensors_header(path)[1], path.stat().st_size)
        for path in sorted(Path(kind.weights).glob("tokenizer*")):
            places[path] = range(path.stat().st_size)
    return places


def _of_any_file(files: dict[Path, range], drawn: random.Random) -> tuple[Path, int]:
    path = drawn.choice([path for path, places in files.items() if places])
    return path, drawn.choice(files[path])


def _of_all_bytes(files: dict[Path, range], drawn: random.Random) -> tuple[Path, int]:
    (path,) = drawn.choices(list(files), [len(places) for places in files.values()])
    return path, drawn.choice(files[path])


def _read(kind: Kind) -> tuple[Result, str]:
    """Run the reading command into an empty `out/`; return its result and the digest of what it wrote."""
    shutil.rmtree("out", ignore_errors=True)
    Path("out").mkdir()
    step = next(step for step in STEPS if step.name == kind.reader)
    command, arguments = command_of(step)
    done = CliRunner().invoke(command, arguments)
    return done, digest(Path("out") / step.outs[0])


def _run(arguments: list[str]) -> Result:
    from neuronrank.cli import main

    return CliRunner().invoke(main, arguments)


def _has_faults(verified: Result) -> bool:
    """Whether `verify` told of a fault, or of something that it could not read at all."""
    return verified.exit_code == 1 and isinstance(verified.exception, SystemExit) and "fault" in verified.output


def _is_refusal(done: Result) -> bool:
    """Whether a command ended with an error of ours, and not with one that nobody expected."""
    return done.exit_code == 1 and isinstance(done.exception, SystemExit) and "Error" in done.output
