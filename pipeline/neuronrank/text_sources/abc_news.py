"""300 short news articles of the Australian Broadcasting Corporation, 2001-02, from the gensim wheel."""

from collections.abc import Iterator
from typing import Literal

from neuronrank.documents import Document
from neuronrank.downloads import Wheel, fetch_wheel, open_member
from neuronrank.params import Section

_MEMBER = "gensim/test/test_data/lee_background.cor"


class Params(Section):
    """Which wheel."""

    source: Literal["abc_news"]
    wheel: Wheel


def documents(params: Params) -> Iterator[Document]:
    """Yield one document per line of the file, in order.

    Raises:
        SourceError: download, checksum or archive is wrong.
    """
    with open_member(fetch_wheel(params.wheel), _MEMBER) as file:
        lines = file.read().decode("utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.strip():
            yield Document(id=f"{params.source}-{number:03d}", source=params.source, text=line.strip())
