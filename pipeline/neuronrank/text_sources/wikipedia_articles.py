"""English Wikipedia articles of about 2016, from a test file that the gensim wheel carries (text CC BY-SA 3.0).

Every third article is the test split, the others are the training split, so that one can calibrate on one and
evaluate on the other. Markup, tables, references and the lists at an article's end are removed.
"""

import bz2
import re
from collections.abc import Iterator
from typing import Literal
from xml.etree import ElementTree

import mwparserfromhell
from mwparserfromhell.wikicode import Wikicode

from neuronrank.documents import Document
from neuronrank.downloads import Wheel, fetch_wheel, open_member
from neuronrank.errors import SourceError
from neuronrank.params import Section

_MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_MIN_CHARACTERS = 2000
"""Of markup; shorter pages are stubs."""
_TEST_EVERY = 3
_NOT_PROSE = ("file:", "image:", "category:")
_BROKEN_TABLE = ("|", "{|", "!")
"""How lines of a table start whose markup is unbalanced, so that the parser took it for text."""
_END_SECTIONS = {"references", "external links", "see also", "further reading", "notes", "footnotes", "bibliography"}
_DROPPED_TAGS = {"ref", "table", "gallery", "math", "timeline", "imagemap", "score"}


class Params(Section):
    """Which wheel, and which of its two splits."""

    source: Literal["wikipedia_articles"]
    wheel: Wheel
    split: Literal["train", "test"]


def documents(params: Params) -> Iterator[Document]:
    """Yield the articles of one split in the dump's order.

    Raises:
        SourceError: download, checksum or archive is wrong.
    """
    with open_member(fetch_wheel(params.wheel), _MEMBER) as file:
        pages = _pages(bz2.decompress(file.read()))
    for position, (title, markup) in enumerate(pages):
        is_test = position % _TEST_EVERY == _TEST_EVERY - 1
        if is_test == (params.split == "test"):
            yield Document(id=title, source=params.source, text=f"= {title} =\n\n{plain_text(markup)}")


def _pages(xml: bytes) -> Iterator[tuple[str, str]]:
    try:
        root = ElementTree.fromstring(xml)  # a checksummed file
    except ElementTree.ParseError as err:
        raise SourceError(f"{_MEMBER}: not valid XML ({err})") from err
    for page in root.iterfind("{*}page"):
        is_article = page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None
        title, markup = page.findtext("{*}title"), page.findtext("{*}revision/{*}text")
        if is_article and title and markup and len(markup) >= _MIN_CHARACTERS:
            yield title, markup


def plain_text(markup: str) -> str:
    """Return an article's prose: headings as `== Title ==`, without markup, tables, references and closing lists."""
    code = mwparserfromhell.parse(markup)
    for node in code.filter_tags(matches=lambda tag: str(tag.tag).lower() in _DROPPED_TAGS):
        _remove(code, node)
    for link in code.filter_wikilinks(matches=lambda link: str(link.title).strip().lower().startswith(_NOT_PROSE)):
        _remove(code, link)
    sections = []
    for section in code.get_sections(flat=True, include_lead=True):
        headings = section.filter_headings()
        title = str(headings[0].title.strip_code()).strip() if headings else ""
        if title.lower() in _END_SECTIONS:
            continue
        for heading in headings:
            _remove(section, heading)
        body = _tidy(str(section.strip_code(normalize=True, collapse=True)))
        if body:
            marks = "=" * headings[0].level if headings else ""
            sections.append(f"{marks} {title} {marks}\n\n{body}" if headings else body)
    return "\n\n".join(sections)


def _remove(code: Wikicode, node: object) -> None:
    try:
        code.remove(node)
    except ValueError:  # a node inside one that is already gone
        return


def _tidy(text: str) -> str:
    text = re.sub(r"\(\s*[,;]?\s*\)", "", text)  # what a removed template leaves: "Albedo () is"
    text = re.sub(r"[ \t]+", " ", text)
    paragraphs = (" ".join(line.split()) for line in text.split("\n"))
    return "\n\n".join(line for line in paragraphs if line and not line.startswith(_BROKEN_TABLE))
