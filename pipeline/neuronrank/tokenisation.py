"""Token windows: the documents of calibration and the windows of evaluation.

Calibration: every text is tokenised by itself and cut into windows of T tokens that do not overlap, so that no
window mixes two texts; a seeded permutation of all windows is drawn once and its first N are kept. A smaller N with
the same seed is therefore a prefix of a larger one.
Evaluation: the texts are joined by blank lines, tokenised once and cut into windows of T tokens that do not overlap
(METHODS section 5, the protocol of Frantar and Alistarh 2023 and Sun et al. 2023). When fewer windows are asked for
than there are, they are spread evenly over the text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from neuronrank.checkpoint import ModelArtifact
from neuronrank.documents import Document
from neuronrank.errors import MismatchError, SourceError
from neuronrank.params import Section


class PrepareParams(Section):
    """How much text, in which pieces."""

    window_tokens: int = Field(ge=2)
    calibration_windows: PositiveInt
    evaluation_windows: Annotated[int, Field(ge=2)] | None
    """At least two: an interval needs more than one."""
    seed: int = Field(ge=0)


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    def __call__(self, text: str, /, **options: Any) -> Any:
        """Return an object with `input_ids`."""


def calibration_windows(
    documents: Sequence[Document], tokenizer: Tokenizer, *, n: int, window_tokens: int, seed: int
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Draw N windows of T tokens from documents.

    Returns:
        (N, T) token ids, and for each window the document's id, its source and the offset of its first token.

    Raises:
        SourceError: the text holds fewer than N windows.
    """
    windows: list[NDArray[np.int32]] = []
    origins: list[dict[str, Any]] = []
    for document in documents:
        ids = _tokenise(tokenizer, document.text)
        for start in range(0, len(ids) - window_tokens + 1, window_tokens):
            windows.append(ids[start : start + window_tokens])
            origins.append({"document": document.id, "source": document.source, "offset_tokens": start})
    if len(windows) < n:
        raise SourceError(
            f"calibration text: holds {len(windows)} windows of {window_tokens} tokens in {len(documents)} documents, "
            f"{n} were asked for. Lower prepare.calibration_windows or prepare.window_tokens, or give more text"
        )
    drawn = np.random.Generator(np.random.PCG64(seed)).permutation(len(windows))[:n]
    return np.stack([windows[i] for i in drawn]), [origins[i] for i in drawn]


def evaluation_windows(
    documents: Sequence[Document], tokenizer: Tokenizer, *, n: int | None, window_tokens: int, name: str
) -> NDArray[np.int32]:
    """Cut the joined text into windows; all of them, or N spread evenly.

    Raises:
        SourceError: the text holds fewer than N windows, or none.
    """
    ids = _tokenise(tokenizer, "\n\n".join(document.text for document in documents))
    n_all = len(ids) // window_tokens
    if n_all < (n or 2):
        raise SourceError(
            f"evaluation text {name!r}: holds {n_all} windows of {window_tokens} tokens ({len(ids)} tokens), "
            f"{n or 'at least 2'} were asked for. Lower prepare.evaluation_windows or prepare.window_tokens"
        )
    windows = ids[: n_all * window_tokens].reshape(n_all, window_tokens)
    kept = np.arange(n_all) if n is None else np.arange(n) * n_all // n
    return windows[kept]


def require_in_vocabulary(model: ModelArtifact, token_ids: NDArray[np.int32]) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        MismatchError: names the largest.
    """
    size: Any = model.description["config"].get("vocab_size")
    largest = int(token_ids.max())
    if size is not None and largest >= size:
        raise MismatchError(
            f"{model.weights_directory}: its tokenizer gives token id {largest}, its model knows {size} tokens. "
            f"The tokenizer does not belong to the model; fetch the model again"
        )


def _tokenise(tokenizer: Tokenizer, text: str) -> NDArray[np.int32]:
    # `verbose=False`: a text longer than the model's context is meant; it is cut into windows.
    return np.asarray(tokenizer(text, verbose=False).input_ids, dtype=np.int32)


def load_tokenizer(directory: Path) -> Tokenizer:
    """Load the tokenizer of a Hugging Face directory.

    Raises:
        SourceError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as err:
        raise SourceError(f"{directory}: its tokenizer cannot be loaded: {' '.join(str(err).split())}") from err
    return tokenizer
