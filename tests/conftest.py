"""A tiny trained-nowhere Llama whose widths all differ, a tokenizer and texts, all made on the spot."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.project import Project, tiny_params

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "seven",
    "dogs",
    "ran",
    "over",
    "green",
    "hills",
    "and",
    "sang",
    "old",
    "songs",
    "of",
    "rain",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, request):
    """Refuse connections in unit tests; the end-to-end tests start processes of their own."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a unit test opened a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


TINY = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
"""Grouped-query attention, and heads * head_dim (32) is not the hidden size (24)."""


def tiny_config(**changes) -> LlamaConfig:
    """Return the configuration of a tiny Llama whose output head is tied."""
    return LlamaConfig(**{**TINY, "tie_word_embeddings": True, **changes})


def tiny_text(seed: int, n_words: int) -> str:
    """Random words, whitespace-separated."""
    order = torch.randint(len(WORDS), (n_words,), generator=torch.Generator().manual_seed(seed))
    return " ".join(WORDS[i] for i in order)


def write_tokenizer(directory: Path) -> None:
    """Train a tokenizer on the words of the tiny texts."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=64, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(directory)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A Hugging Face directory with several shards and a tokenizer."""
    directory = tmp_path_factory.mktemp("tiny-model")
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config())
    with torch.no_grad():  # the default initialisation is so small that every neuron looks alike
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(20)
    model.save_pretrained(directory, max_shard_size="20KB")
    write_tokenizer(directory)
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    return directory


@pytest.fixture(scope="session")
def tiny_texts(tmp_path_factory) -> Path:
    """Three jsonl files: calibration, wiki, news."""
    directory = tmp_path_factory.mktemp("tiny-texts")
    for number, (name, n_documents) in enumerate({"calibration": 8, "wiki": 3, "news": 4}.items()):
        with (directory / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for document in range(n_documents):
                text = tiny_text(100 * number + document, 60 + 7 * document)
                file.write(json.dumps({"text": text}) + "\n")
    return directory


@pytest.fixture(scope="session")
def finished_project(tiny_model, tiny_texts, tmp_path_factory) -> Project:
    """Every stage has run once. Read only: a test that changes it copies it first."""
    project = Project(tmp_path_factory.mktemp("project"), tiny_params(tiny_model, tiny_texts))
    project.run_all()
    return project


@pytest.fixture
def project(finished_project, tiny_model, tiny_texts, tmp_path) -> Project:
    """A copy of the finished project, to be damaged."""
    shutil.copytree(finished_project.root, tmp_path / "project")
    return Project(tmp_path / "project", tiny_params(tiny_model, tiny_texts))
