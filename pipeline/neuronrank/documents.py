"""Text documents, the unit that every text source yields, and the jsonl they are kept in."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from neuronrank.errors import ArtifactError, SourceError
from neuronrank.outputs import output_file

SOURCES_FILE = "sources.json"
"""Beside the texts: what each was fetched with."""


@dataclass(frozen=True)
class Document:
    """One text with an id that is unique within its source."""

    id: str
    source: str
    text: str


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Write documents as jsonl and return how many there were.

    Raises:
        SourceError: there was none, or an id came twice.
        StorageError: the disk refused a write.
    """
    seen: set[str] = set()
    with output_file(path) as partial:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for document in documents:
                if document.id in seen:
                    raise SourceError(f"{path.stem}: the id {document.id!r} comes twice; ids must be unique")
                seen.add(document.id)
                file.write(json.dumps(asdict(document), ensure_ascii=False, sort_keys=True) + "\n")
        if not seen:
            raise SourceError(f"{path.stem}: the text source gave no document")
    return len(seen)


def read_documents(path: Path) -> list[Document]:
    """Read the jsonl that `write_documents` wrote.

    Raises:
        ArtifactError: missing, or a line that is not such a document.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:  # other separators may stand inside a text
            return [Document(**json.loads(line)) for line in file]
    except FileNotFoundError as err:
        raise ArtifactError(f"{path}: not found. Run: dvc repro fetch@text") from err
    except (ValueError, TypeError) as err:
        raise ArtifactError(f"{path}: not the jsonl that fetch writes ({err}). Run: dvc repro fetch@text") from err
