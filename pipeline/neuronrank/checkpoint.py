"""A model directory: safetensors shards read tensor by tensor, and the fingerprint that says which weights they are.

`fetch` writes `model.json` into the model directory. It holds every tensor's type, shape and SHA-256, so that a
later stage can tell whether the weights it reads are those that the statistics were collected from. The weights
themselves lie in the same directory, or, for a model that is already on this machine, where `weights` points.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from neuronrank.errors import MismatchError, NotFiniteError, SourceError
from neuronrank.files import canonical_json, sha256_text
from neuronrank.model_description import MODEL_FILE, RUN, SCHEMA, read_description
from neuronrank.model_files import json_object, read_configuration, require_possible, tokenizer_sha256
from neuronrank.shards import FLOATS, TYPES, mapped_tensor, shard_header, tensor_entries


class Checkpoint:
    """Read-only access to the tensors of a Hugging Face directory, whatever its number of shards."""

    def __init__(self, directory: Path, expected: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Open every shard's header; no tensor is read.

        Args:
            directory: a Hugging Face directory.
            expected: the `tensors` of `model.json`. When given, every tensor is checked against it as it is read.

        Raises:
            SourceError: no safetensors file, a missing shard, or a corrupt one.
        """
        self.directory = directory
        self.shards = _shards(directory)
        self._expected = expected
        self._stored: dict[str, tuple[Path, dict[str, Any], int]] = {}
        for path in self.shards:
            with _reading(path):
                with safe_open(path, framework="numpy"):  # refuses a header that is not sound
                    header, data_start = shard_header(path)
                for name, entry in tensor_entries(header).items():
                    self._stored[name] = path, entry, data_start

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._stored)

    @property
    def untied(self) -> dict[str, str]:
        """Weights that are a copy of their own of one that they share otherwise: none."""
        return {}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, without reading it.

        Raises:
            MismatchError: no such tensor.
        """
        self._require(name)
        return tuple(self._stored[name][1]["shape"])

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor in the type it is stored in.

        It is mapped, not copied, by itself, so that its pages leave memory when it is let go.

        Raises:
            SourceError: its type is unknown, or its shard is not what it was.
            MismatchError: no such tensor, or not the one that was fetched.
            NotFiniteError: it is not the one that was fetched, and holds NaN or infinity.
        """
        self._require(name)
        path, entry, data_start = self._stored[name]
        if entry["dtype"] not in TYPES:
            raise SourceError(f"{name}: is stored as {entry['dtype']}; supported are {', '.join(TYPES)}")
        dtype = TYPES[entry["dtype"]]
        with _reading(path):
            tensor = mapped_tensor(path, entry, data_start, dtype)
        if self._expected is not None:
            self._check(name, tensor)
        return tensor

    def _require(self, name: str) -> None:
        if name not in self._stored:
            raise MismatchError(f"{self.directory}: has no tensor {name!r}. Is it the model that was fetched?")

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        entry = (self._expected or {}).get(name, {})
        expected = entry.get("sha256", "nothing")
        found = tensor_sha256(tensor)
        stored = [_type_name(tensor), list(tensor.shape)]  # the same bytes may be read in several ways
        if found == expected and stored != [entry["dtype"], entry["shape"]]:
            raise MismatchError(
                f"{name}: is {stored[0]} of {stored[1]}, {MODEL_FILE} says {entry['dtype']} of {entry['shape']}. "
                f"The weights in {self.directory} changed after they were fetched. Run: dvc repro --force fetch@model"
            )
        if found != expected:
            require_finite(name, tensor)
            raise MismatchError(
                f"{name}: sha256 is {found[:12]}…, {MODEL_FILE} says {expected[:12]}…. "
                f"The weights in {self.directory} changed after they were fetched. Run: dvc repro --force fetch@model"
            )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as err:
        raise SourceError(f"{path}: missing, although the index names it. Fetch the model again") from err
    except (SafetensorError, OSError, ValueError, RuntimeError) as err:
        raise SourceError(f"{path}: not a readable safetensors file ({err}). Fetch the model again") from err


def _shards(directory: Path) -> list[Path]:
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if index.exists() and single.exists():
        raise SourceError(f"{directory}: has both {single.name} and {index.name}; keep the one that is meant")
    if index.exists():
        weight_map = json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(Path(str(name)).name == name for name in weight_map.values()):
            raise SourceError(f"{index}: has no weight_map of file names. Fetch the model again")
        return [directory / name for name in sorted(set(weight_map.values()))]
    if single.exists():
        return [single]
    found = ", ".join(sorted(path.name for path in directory.glob("*"))[:8]) or "nothing"
    raise SourceError(f"{directory}: found {found}; expected model.safetensors or its index (no pickled weights)")


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes, row-major."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def _type_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def require_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse weights that are NaN or infinite, or of a type that is not a plain float.

    Raises:
        SourceError: the type.
        NotFiniteError: names the tensor and how many entries are bad.
    """
    if tensor.dtype not in FLOATS.values():
        supported = ", ".join(map(str, FLOATS.values()))
        raise SourceError(f"{name}: has type {tensor.dtype}; supported are {supported}")
    if tensor.numel() == 0 or torch.isfinite(torch.stack(torch.aminmax(tensor))).all():  # NaN is both
        return
    n_bad = int((~torch.isfinite(tensor)).sum())
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
        """Number of parameters; weights that are tied count once, even when they are stored twice."""
        tied = bool(self.description["config"].get("tie_word_embeddings"))
        sizes = {}
        for name, entry in self.tensors.items():
            is_matrix = len(entry["shape"]) > 1  # norms may be equal by chance
            sizes[entry["sha256"] if tied and is_matrix else name] = _numel(entry["shape"])
        return sum(sizes.values())

    @property
    def tensors(self) -> dict[str, dict[str, Any]]:
        """Name of every stored tensor -> its type, shape and SHA-256."""
        return dict(self.description["tensors"])

    def require_its_tokenizer(self) -> None:
        """Refuse a tokenizer that changed after the model was fetched.

        Raises:
            MismatchError: names both.
        """
        found = tokenizer_sha256(self.weights_directory)
        if found != self.tokenizer_sha256:
            raise MismatchError(
                f"{self.weights_directory}: tokenizer is {found[:12]}…, {MODEL_FILE} says "
                f"{self.tokenizer_sha256[:12]}…. Run: dvc repro --force fetch@model"
            )

    def checkpoint(self) -> Checkpoint:
        """Open the weights; every tensor is checked against the description as it is read."""
        return Checkpoint(self.weights_directory, self.tensors)


def _numel(shape: list[int]) -> int:
    return math.prod(shape)


def describe_model(directory: Path, source: dict[str, Any], weights: dict[str, str]) -> dict[str, Any]:
    """Read every tensor once and return the content of `model.json`.

    Args:
        directory: a Hugging Face directory with safetensors weights.
        source: the parameters that the model was fetched with.
        weights: `{}` when they lie beside `model.json`; `{"path": …}` or `{"hub": id, "revision": sha}` otherwise.

    Raises:
        SourceError: the weights, configuration or tokenizer are missing, unreadable, or cannot be of one model.
        NotFiniteError: a weight is NaN or infinite.
    """
    config = read_configuration(directory)
    checkpoint = Checkpoint(directory)
    require_possible(directory, config, len(checkpoint.names))
    tensors = {}
    for name in checkpoint.names:
        tensor = checkpoint.tensor(name)
        if not _is_buffer(tensor):
            require_finite(name, tensor)
        tensors[name] = {
            "dtype": _type_name(tensor),
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


def _is_buffer(tensor: torch.Tensor) -> bool:
    """Whether a tensor is none of the weights: Pythia's checkpoints hold masks, and as a scalar the -inf they set."""
    return tensor.ndim == 0 or not tensor.is_floating_point()


def open_model(directory: Path) -> ModelArtifact:
    """Open what `fetch` left.

    Raises:
        ArtifactError: missing, changed after it was written, or of another schema.
        SourceError: the weights that it points to are not on this machine, or cannot be of their configuration.
        MismatchError: their configuration is not the one that was fetched.
    """
    description = read_description(directory)
    weights = _locate_weights(directory, description["weights"])
    if read_configuration(weights) != description["config"]:
        raise MismatchError(
            f"{weights / 'config.json'}: is not what {directory / MODEL_FILE} holds; it changed after it was fetched. "
            f"Run: dvc repro --force fetch@model"
        )
    require_possible(weights, description["config"], len(description["tensors"]))
    return ModelArtifact(directory, weights, description)


def _locate_weights(directory: Path, weights: dict[str, str]) -> Path:
    if "path" in weights:
        target = Path(weights["path"])
        if not target.is_dir():
            raise SourceError(f"{target}: not found, although {directory / MODEL_FILE} points there. Run: {RUN}")
        return target
    if "hub" in weights:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(weights["hub"], revision=weights["revision"], local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError) as err:
            where = f"{weights['hub']} at {weights['revision']}"
            raise SourceError(f"{where}: not in the local hub cache. Run: dvc repro --force fetch@model") from err
    return directory
