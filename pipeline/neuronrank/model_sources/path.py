"""A model that is already on this machine: a Hugging Face directory, used where it lies, or a GGUF file."""

from pathlib import Path
from typing import Literal

from neuronrank.errors import SourceError
from neuronrank.gguf import convert_gguf
from neuronrank.model_sources import ModelParams, Weights


class Params(ModelParams):
    """Where the model is; a relative path starts at the project's root."""

    source: Literal["path"]
    path: str
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the converted weights, for a GGUF file only; a directory keeps its own."""


def materialise(params: Params, out: Path) -> Weights:
    """Point to a directory, or convert a GGUF file into `out`.

    Raises:
        SourceError: nothing at that path, or not a model.
    """
    path = Path(params.path)
    if path.is_dir():
        if not (path / "config.json").exists():
            points = " (what fetch left there points to one: its model.json names it)"
            hint = points if (path / "model.json").exists() else ""
            raise SourceError(f"model.path: {path} has no config.json; expected a Hugging Face directory{hint}")
        return Weights(path, {"path": params.path})
    if path.is_file():
        convert_gguf(path, out, params.dtype)
        return Weights(out, {})
    raise SourceError(f"model.path: {path} does not exist; expected a Hugging Face directory or a .gguf file")
