"""The output head: whether it may be pruned, and which weights it starts from when it is tied to the embeddings."""

from dataclasses import dataclass
from typing import Any

from neuronrank.checkpoint import ModelArtifact
from neuronrank.errors import MismatchError


@dataclass(frozen=True)
class OutputHead:
    """The output head as it is to be pruned."""

    module: str
    """As in the model, for example `lm_head`."""
    source: str
    """The tensor that its weights are read from: its own, or the embeddings that it is a copy of."""
    shape: tuple[int, int]
    """(V, H)."""

    @property
    def weight(self) -> str:
        """Name of its weight in the pruned model."""
        return f"{self.module}.weight"

    @property
    def entry(self) -> dict[str, Any]:
        """Return what a mask says of it, as of a decoder's module."""
        whole = {"rows": None, "transposed": False, "part": "lm_head", "layer": None, "shape": list(self.shape)}
        return {"name": self.module, "weight": self.weight, **whole}

    @property
    def untied(self) -> dict[str, str]:
        """Its weight -> the embeddings that it must become a copy of before it is masked; empty for an own head."""
        return {} if self.source == self.weight else {self.weight: self.source}


def find_output_head(model: ModelArtifact, names: dict[str, Any] | None, untie: bool) -> OutputHead:
    """Find the output head's weights.

    Args:
        model: for its configuration and its tensors' names and shapes.
        names: `lm_head` of the scores' header, see `Skeleton.output_head`.
        untie: give a tied head a copy of its own.

    Raises:
        MismatchError: the head is tied to the embeddings and may not be untied, or the model has none.
    """
    if names is None:
        raise MismatchError(f"{model.directory}: the statistics name no output head. Run: dvc repro collect score")
    own, embeddings = names["weight"], names["embeddings"]
    absent = sorted({name for name in (own, embeddings) if name is not None} - model.tensors.keys())
    if absent:
        raise MismatchError(f"{model.directory}: has no tensor {absent[0]!r}. Is it the model that was collected from?")
    if own is not None and not names["tied"]:
        return _head(model, names["module"], own)
    why = "config.json says tie_word_embeddings" if names["tied"] else "the checkpoint has none of its own"
    if not untie:
        raise MismatchError(
            f"{names['module']}: tied to {embeddings} ({why}), so that pruning it would zero the embeddings. "
            f"Leave it dense, or ask for an own copy: untie_lm_head: true (--untie-lm-head)"
        )
    if own is not None and model.tensors[own]["sha256"] != model.tensors[embeddings]["sha256"]:
        raise MismatchError(
            f"{names['module']}: {why}, but {own} and {embeddings} are stored with different values. "
            f"Set tie_word_embeddings in config.json to what is meant, and fetch the model again"
        )
    return _head(model, names["module"], embeddings)


def _head(model: ModelArtifact, module: str, source: str) -> OutputHead:
    n_out, n_in = model.tensors[source]["shape"]
    return OutputHead(module, source, (n_out, n_in))
