"""Calibration and evaluation windows with a tokenizer that can be read by eye."""

from types import SimpleNamespace

import numpy as np
import pytest

from neuronrank.documents import Document, read_documents, write_documents
from neuronrank.errors import ArtifactError, MismatchError, SourceError
from neuronrank.tokenisation import calibration_windows, evaluation_windows, load_tokenizer
from neuronrank.windows import read_windows, require_same_tokenizer, write_windows


def tokenizer(text, /, **_options):
    """One token a character: its code point."""
    return SimpleNamespace(input_ids=[ord(character) for character in text])


DOCUMENTS = [
    Document("one", "books", "abcdefgh"),  # 2 windows of 3, 2 tokens left over
    Document("two", "books", "ij"),  # too short for a window
    Document("three", "news", "klmnop"),  # 2 windows
]


def draw(n, seed=0):
    return calibration_windows(DOCUMENTS, tokenizer, n=n, window_tokens=3, seed=seed)


def text_of(ids):
    return ["".join(map(chr, row)) for row in ids]


def test_windows_never_mix_documents_and_never_overlap():
    ids, origins = draw(4)
    assert sorted(text_of(ids)) == ["abc", "def", "klm", "nop"]
    starts = {"abc": ("one", 0), "def": ("one", 3), "klm": ("three", 0), "nop": ("three", 3)}
    assert [(o["document"], o["offset_tokens"]) for o in origins] == [starts[text] for text in text_of(ids)]
    assert {o["source"] for o in origins} == {"books", "news"}
    assert ids.dtype == np.int32


def test_a_smaller_draw_is_a_prefix_and_the_seed_matters():
    assert text_of(draw(2)[0]) == text_of(draw(4)[0])[:2]
    assert len({tuple(text_of(draw(4, seed)[0])) for seed in range(5)}) > 1


def test_too_little_calibration_text_is_refused_with_the_numbers():
    with pytest.raises(SourceError, match="holds 4 windows of 3 tokens in 3 documents, 5 were asked for"):
        draw(5)


def test_evaluation_joins_by_blank_lines_and_drops_the_tail():
    ids = evaluation_windows(DOCUMENTS, tokenizer, n=None, window_tokens=4, name="books")
    assert text_of(ids) == ["abcd", "efgh", "\n\nij", "\n\nkl", "mnop"]


def test_fewer_evaluation_windows_are_spread_evenly():
    ids = evaluation_windows(DOCUMENTS, tokenizer, n=2, window_tokens=4, name="books")
    assert text_of(ids) == ["abcd", "\n\nij"]


@pytest.mark.parametrize(("n", "window_tokens"), [(6, 4), (None, 50)])
def test_too_little_evaluation_text_is_refused(n, window_tokens):
    with pytest.raises(SourceError, match=r"evaluation text 'books': holds \d windows of \d+ tokens \(20 tokens\)"):
        evaluation_windows(DOCUMENTS, tokenizer, n=n, window_tokens=window_tokens, name="books")


def test_windows_come_back_as_written_and_know_their_tokenizer(tmp_path):
    path = tmp_path / "windows.safetensors"
    ids, _ = draw(3)
    write_windows(path, ids, {"tokenizer_sha256": "a" * 64, "window_tokens": 3, "source": {}})
    windows = read_windows(path)
    assert windows.token_ids.tolist() == ids.tolist()
    assert windows.n_tokens == 9
    with pytest.raises(MismatchError, match="made by tokenizer aaaaaaaaaaaa…, the model's tokenizer is bbbbbbbbbbbb…"):
        require_same_tokenizer(windows, path, "b" * 64)


def test_documents_come_back_as_written(tmp_path):
    path = tmp_path / "d.jsonl"
    documents = [Document("a", "s", "first\nline \u2028 and “quotes”"), Document("b", "s", "x")]
    assert write_documents(path, documents) == 2
    assert read_documents(path) == documents


def test_no_document_and_equal_ids_are_refused(tmp_path):
    with pytest.raises(SourceError, match="gave no document"):
        write_documents(tmp_path / "d.jsonl", [])
    with pytest.raises(SourceError, match="the id 'a' comes twice"):
        write_documents(tmp_path / "d.jsonl", [Document("a", "s", "x"), Document("a", "s", "y")])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_jsonl_is_refused(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(ArtifactError, match="not the jsonl that fetch writes"):
        read_documents(tmp_path / "d.jsonl")


def test_a_directory_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(SourceError, match="its tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
