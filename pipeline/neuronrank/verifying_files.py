"""What `neuronrank verify` checks of files: scores, masks, losses, token windows and importance matrices."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from neuronrank import losses, mask_store, score_store, windows
from neuronrank.artifact_kinds import KINDS, stated_schema
from neuronrank.errors import NeuronrankError
from neuronrank.files import sha256_file
from neuronrank.findings import Checked
from neuronrank.imatrix import read_imatrix
from neuronrank.seals import FIELD


def check_file(path: Path) -> Checked:
    """Check one file.

    Raises:
        ArtifactError: it cannot be read, or does not state what it is.
        SourceError: a GGUF file that is no sound importance matrix.
    """
    schema = stated_schema(path)
    checks: dict[str, Callable[[Path], Checked]] = {
        "scores": _check_scores,
        "masks": _check_masks,
        "losses": _check_losses,
        "token windows": _check_windows,
        "imatrix": _check_imatrix,
    }
    kind = KINDS.get(schema)
    if kind in checks:
        return checks[kind](path)
    checked = Checked(path, "none")
    known = ", ".join(one for one in KINDS if KINDS[one] in checks)
    checked.fault(f"schema is {schema!r}; expected one that this version reads: {known}")
    return checked


def _opened(path: Path, kind: str, header: dict[str, Any]) -> Checked:
    checked = Checked(path, kind, str(header[FIELD]), dict(header.get("made_from", {})))
    checked.ok(f"{kind}: seal {header[FIELD][:12]}…, {header['schema']}, header and shapes")
    return checked


def _check_scores(path: Path) -> Checked:
    factors, header = score_store.read_scores(path)
    checked = _opened(path, "scores", header)
    bad = sorted(name for name, vector in factors.items() if not np.isfinite(vector).all())
    for name in bad:
        checked.fault(f"{name} holds NaN or infinity")
    if not bad:
        checked.ok(f"{len(factors)} vectors, all finite")
    return checked


def _check_masks(path: Path) -> Checked:
    masks = mask_store.MaskFile(path)
    checked = _opened(path, "masks", masks.header)
    n_sound = 0
    for weight in masks.weights:
        try:
            masks.keep(weight)  # counts its bits
            n_sound += 1
        except NeuronrankError as err:
            checked.fault(str(err))
    removed = sum(entry["n_removed"] for entry in masks.modules)
    size = sum(math.prod(entry["shape"]) for entry in masks.modules)
    if n_sound == len(masks.weights):
        checked.ok(f"{removed} of {size} weights removed, counted in {n_sound} masks")
    stated = masks.header["sparsity"].get("selected", math.nan)
    if size and abs(removed / size - stated) <= 1e-9:
        checked.ok(f"realised sparsity {stated:.6f}")
    else:
        checked.fault(f"states sparsity {stated} of what it prunes; its modules remove {removed} of {size}")
    return checked


def _check_losses(path: Path) -> Checked:
    held = losses.read_losses(path)
    checked = _opened(path, "losses", losses.read_losses_header(path))
    checked.ok(f"{sum(values.size for values in held.values())} losses of {len(held)} texts, all finite")
    return checked


def _check_windows(path: Path) -> Checked:
    held = windows.read_windows(path)
    checked = _opened(path, "token windows", held.header)
    checked.kind = "calibration" if "origins" in held.header else f"evaluation/{path.stem}"
    checked.identity = held.sha256
    checked.ok(f"{len(held.token_ids)} windows of {held.token_ids.shape[1]} tokens, ids {held.sha256[:12]}…")
    return checked


def _check_imatrix(path: Path) -> Checked:
    held = read_imatrix(path)
    checked = Checked(path, "imatrix", sha256_file(path), dict(held.made_from))
    checked.ok(f"imatrix: sha256 {str(checked.identity)[:12]}…, it has no seal; header and shapes")
    checked.ok(f"sums and counts of {len(held.entries)} weights, all finite")
    return checked
