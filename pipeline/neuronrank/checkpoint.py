"""A model directory: safetensors shards read tensor by tensor, and the fingerprint that says which weights they are.

`fetch` writes `model.json` into the model directory. It holds every tensor's type, shape and SHA-256, so that a
later stage can tell whether the weights it reads are those that the statistics were collected from. The weights
themselves lie in the same directory, or, for a model that is already on this machine, where `weights` points.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from neuronrank.errors import ArtifactError, MismatchError, NotFiniteError, SourceError
from neuronrank.files import canonical_json, check_schema, read_json, sha256_file, sha256_text

MODEL_FILE = "model.json"
SCHEMA = "neuronrank.model/1"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
_RUN = "dvc repro fetch@model"
_VOLATILE_CONFIG = {"_name_or_path", "_model_name_or_path", "transformers_version"}


class Checkpoint:
    """Read-only access to the tensors of a Hugging Face directory, whatever its number of shards."""

    def __init__(self, directory: Path) -> None:
        """Open every shard's header; no tensor is read.

        Raises:
            SourceError: no safetensors file, a missing shard, or a corrupt one.
        """
        self.directory = directory
        self._file_of: dict[str, Path] = {}
        self._handles: dict[Path, Any] = {}
        for path in _shards(directory):
            try:
                handle = safe_open(path, framework="pt")
            except FileNotFoundError as err:
                raise SourceError(f"{path}: missing, although the index names it. Fetch the model again") from err
            except (SafetensorError, OSError) as err:
                raise SourceError(f"{path}: not a readable safetensors file ({err}). Fetch the model again") from err
            self._handles[path] = handle
            self._file_of.update(dict.fromkeys(self._handles[path].keys(), path))

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._file_of)

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor in the type it is stored in.

        Raises:
            MismatchError: no such tensor.
        """
        return torch.as_tensor(self._handle(name).get_tensor(name))

    def lazy(self, name: str) -> Any:
        """Return a slice object that reads its tensor only when asked.

        Raises:
            MismatchError: no such tensor.
        """
        return self._handle(name).get_slice(name)

    def _handle(self, name: str) -> Any:
        if name not in self._file_of:
            raise MismatchError(f"{self.directory}: has no tensor {name!r}. Is it the model that was collected?")
        return self._handles[self._file_of[name]]


def _shards(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index, run="fetch the model again")["weight_map"]
        return [directory / name for name in sorted(set(weight_map.values()))]
    single = directory / "model.safetensors"
    if single.exists():
        return [single]
    found = ", ".join(sorted(path.name for path in directory.glob("*"))[:8]) or "nothing"
    raise SourceError(f"{directory}: found {found}; expected model.safetensors or its index (no pickled weights)")


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes, row-major."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def require_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        NotFiniteError: names the tensor and how many entries are bad.
    """
    if tensor.is_floating_point():
        n_bad = int((~torch.isfinite(tensor)).sum())
        if n_bad:
            raise NotFiniteError(f"{name}: {n_bad} of {tensor.numel()} weights are NaN or infinite. Fetch another copy")


@dataclass(frozen=True)
class ModelArtifact:
    """What `fetch` left: where the weights are, and what they are."""

    directory: Path
    weights_directory: Path
    description: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the configuration and every tensor's name, type, shape and bytes."""
        return str(self.description["fingerprint"])

    @property
    def tokenizer_sha256(self) -> str:
        """SHA-256 over the tokenizer's files."""
        return str(self.description["tokenizer_sha256"])

    @property
    def n_parameters(self) -> int:
        """Number of stored parameters; tied weights count once."""
        return sum(_numel(entry["shape"]) for entry in self.description["tensors"].values())


def _numel(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())


def describe_model(directory: Path, source: dict[str, Any], weights: dict[str, str]) -> dict[str, Any]:
    """Read every tensor once and return the content of `model.json`.

    Args:
        directory: a Hugging Face directory with safetensors weights.
        source: the parameters that the model was fetched with.
        weights: `{}` when they lie beside `model.json`; `{"path": …}` or `{"hub": id, "revision": sha}` otherwise.

    Raises:
        SourceError: the weights, configuration or tokenizer are missing or unreadable.
        NotFiniteError: a weight is NaN or infinite.
    """
    config = _config(directory)
    checkpoint = Checkpoint(directory)
    tensors = {}
    for name in checkpoint.names:
        tensor = checkpoint.tensor(name)
        require_finite(name, tensor)
        tensors[name] = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "sha256": tensor_sha256(tensor),
        }
    return {
        "schema": SCHEMA,
        "source": source,
        "weights": weights,
        "config": config,
        "tensors": tensors,
        "tokenizer_sha256": tokenizer_sha256(directory),
        "fingerprint": sha256_text(canonical_json({"config": config, "tensors": tensors})),
    }


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.exists():
        raise SourceError(f"{path}: not found. A Hugging Face model directory has one")
    config = read_json(path, run="fetch the model again")
    return {key: value for key, value in config.items() if key not in _VOLATILE_CONFIG}


def tokenizer_sha256(directory: Path) -> str:
    """Return one SHA-256 over the tokenizer's vocabulary files.

    Raises:
        SourceError: the directory has none.
    """
    files = {name: sha256_file(directory / name) for name in TOKENIZER_FILES if (directory / name).exists()}
    if not files:
        raise SourceError(f"{directory}: no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}")
    return sha256_text(json.dumps(files, sort_keys=True))


def open_model(directory: Path) -> ModelArtifact:
    """Open what `fetch` left.

    Raises:
        ArtifactError: missing or of another schema.
        SourceError: the weights that it points to are not on this machine.
    """
    path = directory / MODEL_FILE
    description = read_json(path, run=_RUN)
    check_schema(path, description, SCHEMA, _RUN)
    return ModelArtifact(directory, _locate_weights(directory, description["weights"]), description)


def _locate_weights(directory: Path, weights: dict[str, str]) -> Path:
    if "path" in weights:
        target = Path(weights["path"])
        if not target.is_dir():
            raise SourceError(f"{target}: not found, although {directory / MODEL_FILE} points there. Run: {_RUN}")
        return target
    if "hub" in weights:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(snapshot_download(weights["hub"], revision=weights["revision"], local_files_only=True))
        except LocalEntryNotFoundError as err:
            where = f"{weights['hub']} at {weights['revision']}"
            raise SourceError(f"{where}: not in the local hub cache. Run: dvc repro --force fetch@model") from err
    return directory


def iter_described(model: ModelArtifact, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Read tensors one by one, each checked against the SHA-256 that `fetch` recorded.

    Raises:
        MismatchError: a tensor is missing or is not the one that was fetched.
        NotFiniteError: a weight is NaN or infinite.
    """
    checkpoint = Checkpoint(model.weights_directory)
    for name in names:
        tensor = checkpoint.tensor(name)
        expected = model.description["tensors"].get(name, {}).get("sha256")
        if expected is None:
            raise ArtifactError(f"{model.directory / MODEL_FILE}: does not describe {name}. Run: {_RUN}")
        found = tensor_sha256(tensor)
        if found != expected:
            require_finite(name, tensor)
            raise MismatchError(
                f"{name}: sha256 is {found[:12]}…, {MODEL_FILE} says {expected[:12]}…. "
                f"The weights in {model.weights_directory} changed after they were fetched. Run: {_RUN}"
            )
        yield name, tensor
