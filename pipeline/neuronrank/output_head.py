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
    def untied(self) -> dict[str, str]:
        """Its weight -> the embeddings that it must become a copy of before it is masked; empty for an own head."""
        return {} if self.source == self.weight else {self.weight: self.source}


def find_output_head(model: ModelArtifact, names: dict[str, Any] | None, untie: bool) -> OutputHead:
    """Find the output head's weights.

    Args:
        model: for its configuration and its tensors' names and shapes.
        names: `lm_head` of the scores' header: `module` and `embeddings`, as in the model.
        untie: give a tied head a copy of its own.

    Raises:
        MismatchError: the head is tied to the embeddings and may not be untied, or the model has none.
    """
    if names is None:
        raise MismatchError(f"{model.directory}: the statistics name no output head. Run: dvc repro collect score")
    own, embeddings = f"{names['module']}.weight", f"{names['embeddings']}.weight"
    missing = sorted({own, embeddings} - model.tensors.keys())
    if embeddings in missing:
        raise MismatchError(
            f"{model.directory}: has no tensor {embeddings!r}. Is it the model that was collected from?"
        )
    tied = bool(model.description["config"].get("tie_word_embeddings"))
    if not (tied or missing):
        return _head(model, names["module"], own)
    why = "config.json says tie_word_embeddings" if tied else f"the checkpoint has no {own}"
    if not untie:
        raise MismatchError(
            f"{names['module']}: tied to {embeddings} ({why}), so that pruning it would zero the embeddings. "
            f"Leave it dense, or ask for an own copy: untie_lm_head: true (--untie-lm-head)"
        )
    if not missing and model.tensors[own]["sha256"] != model.tensors[embeddings]["sha256"]:
        raise MismatchError(
            f"{names['module']}: {why}, but {own} and {embeddings} are stored with different values. "
            f"Set tie_word_embeddings in config.json to what is meant, and fetch the model again"
        )
    return _head(model, names["module"], embeddings)


def _head(model: ModelArtifact, module: str, source: str) -> OutputHead:
    n_out, n_in = model.tensors[source]["shape"]
    return OutputHead(module, source, (n_out, n_in))
