"""Where artifacts come from: what each was made from, by identity, and by which libraries.

`made_from` goes from artifact to artifact and gains what was used at each step:

    model         fingerprint of the weights
    calibration   SHA-256 of the calibration token ids
    statistics, scores, masks, losses   seal of the file (of statistics: of its manifest)
    evaluation/<text>                   SHA-256 of the evaluation token ids
    imatrix       SHA-256 of the importance matrix that was imported
    exported      seal of the statistics that this importance matrix was exported from, where it says so
    parts         seals of the statistics that were merged, in their order, separated by spaces

Only what was read from a file has a seal: a one-shot run keeps some of it in memory.

Scores, masks and exports repeat what statistics say of model, calibration (the windows by their hash), collection and
versions of libraries; metrics say the same in words.
"""

import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import neuronrank
from neuronrank.files import canonical_json, sha256_file, sha256_text
from neuronrank.seals import FIELD

_LIBRARIES = ("torch", "transformers", "numpy", "numba", "zarr", "numcodecs", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions that the bytes of statistics may depend on, this package's among them."""
    return {"neuronrank": neuronrank.__version__, **{name: metadata.version(name) for name in _LIBRARIES}}


def key_of(made_from: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all that an artifact's bytes follow from: what is given, the libraries, and our own code.

    Work in progress goes on only under the same key: of two versions of the code it would be a mixture.
    """
    root = Path(neuronrank.__file__).parent
    sources = {path.relative_to(root).as_posix(): sha256_file(path) for path in sorted(root.rglob("*.py"))}
    return sha256_text(canonical_json({**made_from, "versions": versions(), "sources": sources}))


def libraries(versions: Mapping[str, str]) -> str:
    """Return versions in one line, by name."""
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def made_from(header: Mapping[str, Any], kind: str | None = None) -> dict[str, str]:
    """Return what something is made from that is made from an artifact: its own `made_from`, and itself.

    Args:
        header: of the artifact, as read; of one that was never in a file, without a seal.
        kind: what the artifact is called: `statistics`, `scores`, `masks` or `losses`; None leaves itself out.
    """
    earlier = dict(header.get("made_from") or {})
    if not earlier and "model" in header:  # statistics that are being collected, or a model alone
        earlier = {"model": header["model"]["fingerprint"]}
        tokens = header.get("calibration", {}).get("sha256")
        earlier |= {"calibration": tokens} if tokens else {}
    return earlier | ({kind: header[FIELD]} if kind and FIELD in header else {})


def in_words(header: Mapping[str, Any]) -> dict[str, str]:
    """Return, in a line each, what the identities stand for: for metrics, which travel without the artifacts.

    Args:
        header: of statistics, scores or masks.

    Returns:
        `tokenizer` SHA-256, `text`, `windows`, `seed`, `dtype`, `propagation` and `libraries`, those that are known.
    """
    calibration, collect = header.get("calibration") or {}, header.get("collect") or {}
    found = {
        "tokenizer": header["model"].get("tokenizer_sha256"),
        "text": json.dumps(calibration["source"], sort_keys=True) if "source" in calibration else None,
        "windows": "{n_windows} of {window_tokens} tokens".format_map(calibration) if calibration else None,
        "seed": None if calibration.get("seed") is None else str(calibration["seed"]),
        "dtype": collect.get("dtype"),
        "propagation": collect.get("propagation"),
        "libraries": libraries(header["versions"]) if header.get("versions") else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def file_entries(directory: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return, for files of a directory, their path inside it -> `bytes` and `sha256`."""
    return {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(paths)
    }
