"""A dataset of the Hugging Face hub at a pinned revision, streamed: only the documents asked for are downloaded."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, PositiveInt

from neuronrank.documents import Document
from neuronrank.errors import SourceError
from neuronrank.params import Section


class Params(Section):
    """Which dataset, at which commit, and how many of its documents."""

    source: Literal["hub"]
    id: str
    revision: str = Field(pattern="^[0-9a-f]{40}$")
    config: str | None = None
    data_files: str | None = None
    """One file of the repository, for example `en/c4-train.00000-of-01024.json.gz`."""
    split: str = "train"
    text_column: str = "text"
    n_documents: PositiveInt
    seed: int | None = None
    """Shuffle with this seed before taking documents; null takes the first ones."""
    shuffle_buffer: PositiveInt = 10_000


def documents(params: Params) -> Iterator[Document]:
    """Yield `n_documents` documents that are not blank.

    Raises:
        SourceError: the hub cannot be reached, has no such dataset or column, or holds fewer documents.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    name = f"dataset {params.id} at {params.revision}"
    try:
        rows = load_dataset(
            params.id,
            params.config,
            data_files=params.data_files,
            split=params.split,
            revision=params.revision,
            streaming=True,
        )
        if params.seed is not None:
            rows = rows.shuffle(seed=params.seed, buffer_size=params.shuffle_buffer)
        n_found = 0
        for number, row in enumerate(rows):
            if params.text_column not in row:
                raise SourceError(f"{name}: no column {params.text_column!r}; it has {', '.join(row)}")
            text = row[params.text_column]
            if not isinstance(text, str):
                raise SourceError(f"{name}: row {number} holds {text!r} in {params.text_column!r}, expected a text")
            if text.strip():
                yield Document(id=f"{params.id}-{number}", source=params.id, text=text)
                n_found += 1
            if n_found == params.n_documents:
                return
    except (DatasetGenerationError, ValueError, OSError) as err:
        raise SourceError(f"{name}: cannot be read: {' '.join(str(err).split())}") from err
    raise SourceError(f"{name}: holds {n_found} documents, {params.n_documents} were asked for")
