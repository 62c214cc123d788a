"""What `neuronrank verify` finds of one artifact: lines, and the identities by which artifacts name each other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from neuronrank.errors import NeuronrankError


@dataclass(frozen=True)
class Finding:
    """One line."""

    path: Path
    what: str
    state: str = "ok"
    """`ok`, `FAULT`, or `-` for what could not be compared."""

    @property
    def is_fault(self) -> bool:
        """Whether something is wrong."""
        return self.state == "FAULT"

    def line(self) -> str:
        """Return it as text."""
        return f"{self.state:<6} {self.path}: {self.what.removeprefix(f'{self.path}: ')}"


@dataclass
class Checked:
    """An artifact, and all that was found of it."""

    path: Path
    kind: str
    """As in `made_from`; `none` of what nothing is made from."""
    identity: str | None = None
    """By which others name it; None when it cannot be told."""
    made_from: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def ok(self, what: str) -> None:
        """Add that something is right."""
        self.findings.append(Finding(self.path, what))

    def fault(self, what: str) -> None:
        """Add that something is wrong."""
        self.findings.append(Finding(self.path, what, "FAULT"))

    def attempt(self, what: str, check: Callable[[], object]) -> bool:
        """Run a check that raises an error of ours when something is wrong; return whether it did not."""
        try:
            check()
        except NeuronrankError as err:
            self.fault(str(err))
            return False
        self.ok(what)
        return True
