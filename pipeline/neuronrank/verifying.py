"""`neuronrank verify`: whether artifacts are whole, sound, and made from each other. All faults are told.

Needs torch only for the weights of a model.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from neuronrank.errors import ArtifactError, NeuronrankError
from neuronrank.findings import Checked, Finding
from neuronrank.model_description import EXPORT_FILE, MODEL_FILE
from neuronrank.statistics_store import MANIFEST, TAPS
from neuronrank.verifying_files import check_file
from neuronrank.verifying_statistics import check_statistics

_EARLIER = ("parts", "exported")
"""Statistics that others came from: these need not be kept, and what is given may be the later ones."""


def verify(paths: Sequence[Path]) -> list[Finding]:
    """Check artifacts, and which of them were made from which.

    Args:
        paths: directories of statistics, of a model, of an exported model, or that hold such and files; files of
            scores, masks, losses, token windows and importance matrices. (Of what a directory holds, GGUF files are
            left out: they may be models.)

    Returns:
        Everything that was checked, in the order of the paths, then the links between the artifacts.
    """
    found, checked = [], []
    for path in paths:
        artifacts = list(_artifacts(path))
        if not artifacts:
            what = "holds no artifact of ours" if path.is_dir() else "not found"
            found.append(Finding(path, what, "FAULT"))
        for artifact in artifacts:
            checked.append(_check(artifact))
            found += checked[-1].findings
    return [*found, *_links(checked)]


def _artifacts(path: Path) -> Iterator[Path]:
    """Yield what can be checked by itself: `path`, or what lies below it."""
    if path.is_file() or any((path / name).exists() for name in (MANIFEST, TAPS, MODEL_FILE, EXPORT_FILE)):
        yield path
    elif path.is_dir():
        for inner in sorted(path.iterdir()):
            if (inner.is_dir() and not inner.name.startswith(".")) or inner.suffix == ".safetensors":
                yield from _artifacts(inner)


def _check(path: Path) -> Checked:
    try:
        if path.is_file():
            return check_file(path)
        if (path / MANIFEST).exists() or (path / TAPS).exists():
            return check_statistics(path)
        from neuronrank.verifying_models import check_export, check_model  # torch

        return check_export(path) if (path / EXPORT_FILE).exists() else check_model(path)
    except NeuronrankError as err:
        checked = Checked(path, "none")
        checked.fault(str(err))
        return checked
    except OSError as err:
        checked = Checked(path, "none")
        checked.fault(str(ArtifactError(f"cannot be read ({err})")))
        return checked


def _links(checked: Sequence[Checked]) -> Iterator[Finding]:
    """Yield, for everything that an artifact says it was made from, whether that is among those that were checked."""
    given: dict[str, dict[str, Path]] = {}
    for one in checked:
        if one.identity is not None:
            given.setdefault(one.kind, {})[one.identity] = one.path
    for one in checked:
        for stated, identities in sorted(one.made_from.items()):
            kind = "statistics" if stated in _EARLIER else stated
            for identity in identities.split():
                others = given.get(kind, {})
                if identity in others:
                    yield Finding(one.path, f"made from {kind} {others[identity]} ({identity[:12]}…)")
                elif others and stated not in _EARLIER:
                    shown = ", ".join(f"{path} is {other[:12]}…" for other, path in list(others.items())[:4])
                    yield Finding(one.path, f"made from {kind} {identity[:12]}…, which differs: {shown}", "FAULT")
                else:
                    yield Finding(one.path, f"made from {kind} {identity[:12]}…, not among what was given", "-")
