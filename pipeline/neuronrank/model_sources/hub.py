"""A model of the Hugging Face hub at a pinned revision, kept in the hub's own cache."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from neuronrank.errors import SourceError
from neuronrank.model_sources import ModelParams, Weights

_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "merges.txt", "vocab.txt"]


class Params(ModelParams):
    """Which repository, at which commit. A branch name is refused: it would change under the cache."""

    source: Literal["hub"]
    id: str
    revision: str = Field(pattern="^[0-9a-f]{40}$")


def materialise(params: Params, out: Path) -> Weights:
    """Download the snapshot into the hub's cache and point to it; `out` stays empty.

    Raises:
        SourceError: the hub cannot be reached, or has no such repository or revision.
    """
    del out  # the weights stay in the hub's cache
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(params.id, revision=params.revision, allow_patterns=_WANTED)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as err:
        reason = " ".join(str(err).split())
        raise SourceError(f"model {params.id} at {params.revision}: cannot be downloaded: {reason}") from err
    return Weights(Path(snapshot), {"hub": params.id, "revision": params.revision})
