"""Text files on this machine: jsonl or parquet with a text column, or plain text with one document per file."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from neuronrank.documents import Document
from neuronrank.errors import SourceError
from neuronrank.params import Section

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}


class Params(Section):
    """Which files, relative to the project's root."""

    source: Literal["files"]
    pattern: str = Field(min_length=1)
    """A path, or a glob such as `texts/*.jsonl`; files are read in sorted order."""
    text_column: str = "text"
    """Of jsonl and parquet."""


def documents(params: Params) -> Iterator[Document]:
    """Yield the documents of all matching files.

    Raises:
        SourceError: nothing matches, an unknown ending, an unreadable file, or no such column.
    """
    base = Path(params.pattern)
    root = Path(base.anchor) if base.is_absolute() else Path()
    paths = sorted(root.glob(str(base.relative_to(base.anchor) if base.is_absolute() else base)))
    if not paths:
        raise SourceError(f"text files {params.pattern!r}: nothing matches below {Path.cwd()}")
    common = Path(os.path.commonpath([path.parent for path in paths]))
    for path in paths:
        if path.suffix not in _BUILDERS:
            raise SourceError(f"{path}: ending {path.suffix!r} is not one of {', '.join(_BUILDERS)}")
        for number, text in enumerate(_texts(path, params.text_column)):
            yield Document(id=f"{path.relative_to(common)}-{number}", source=path.name, text=text)


def _texts(path: Path, column: str) -> Iterator[str]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    options = {"sample_by": "document"} if path.suffix == ".txt" else {}
    wanted = "text" if path.suffix == ".txt" else column
    try:
        rows = load_dataset(_BUILDERS[path.suffix], data_files=str(path), split="train", streaming=True, **options)
        for number, row in enumerate(rows):
            if wanted not in row:
                raise SourceError(f"{path}: no column {wanted!r}; it has {', '.join(row)}. Set text_column")
            if not isinstance(row[wanted], str):
                raise SourceError(f"{path}: row {number} holds {row[wanted]!r} in {wanted!r}, expected a text")
            yield row[wanted]
    except (DatasetGenerationError, ValueError, OSError) as err:
        raise SourceError(f"{path}: cannot be read: {' '.join(str(err).split())}") from err
