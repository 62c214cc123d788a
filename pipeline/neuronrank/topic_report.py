"""The topics of a layer, so that a person can see what they are: their sizes, and tokens near their centroids."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import MismatchError
from neuronrank.statistics_store import Statistics
from neuronrank.topic_merging import merged_topics

NOWHERE = np.iinfo(np.uint32).max
"""In `nearest`, where a micro-topic has fewer tokens; as in `topics.py`, which needs torch."""
CONTEXT = 6
"""Tokens shown before and after the one that is meant."""


@dataclass(frozen=True)
class Topic:
    """One topic of one layer."""

    micro_topics: tuple[int, ...]
    """Of which it is made, the largest first."""
    n_tokens: int
    places: tuple[tuple[int, int], ...]
    """Document and position of tokens near its centroid, best first: the nearest of each micro-topic, the micro-topics
    with most tokens first, then the second nearest of each, and so on."""


def read_topics(statistics: Statistics, layer: int, k: int | None) -> list[Topic]:
    """Return the topics of a layer, the largest first.

    Args:
        statistics: an opened artifact.
        layer: which layer.
        k: to how many topics the micro-topics are merged; None leaves them as they are.

    Raises:
        ArtifactError: the artifact holds no topics.
        MismatchError: no such layer, or not as many micro-topics.
    """
    n_layers = statistics.manifest["n_layers"]
    if not 0 <= layer < n_layers:
        raise MismatchError(f"{statistics.directory}: has layers 0 to {n_layers - 1}, layer {layer} was asked for")
    count = statistics.layer_values(layer, "topics", "count")
    k = len(count) if k is None else k
    if not 1 <= k <= len(count):
        raise MismatchError(
            f"{statistics.directory}: holds {len(count)} micro-topics, {k} topics were asked for. "
            f"Raise collect.topics.micro_topics and run: dvc repro collect"
        )
    nearest = statistics.layer_values(layer, "topics", "nearest")
    merges = statistics.layer_values(layer, "topics", "merges") if len(count) > 1 else np.zeros((0, 2), np.int32)
    of_micro = merged_topics(merges, k)
    topics = [_topic(np.flatnonzero(of_micro == topic), count, nearest) for topic in range(k)]
    return sorted(topics, key=lambda topic: (-topic.n_tokens, topic.micro_topics))


def _topic(members: NDArray[np.int64], count: NDArray[np.int32], nearest: NDArray[np.uint32]) -> Topic:
    members = members[np.argsort(-count[members].astype(np.int64), kind="stable")]
    by_rank = nearest[members].transpose(1, 0, 2).reshape(-1, 2)
    places = tuple((int(document), int(token)) for document, token in by_rank if token != NOWHERE)
    return Topic(tuple(map(int, members)), int(count[members].sum()), places)


def topic_lines(statistics: Statistics, topics: list[Topic], model: Path, n_examples: int) -> list[str]:
    """Return the report: of every topic its size, its micro-topics and tokens near its centroid, in their context.

    Args:
        statistics: an opened artifact.
        topics: of `read_topics`.
        model: what fetch left; its tokenizer turns tokens into text.
        n_examples: so many tokens are shown of each topic.

    Raises:
        ArtifactError: the model is missing, or the calibration tokens are corrupt.
        MismatchError: another tokenizer made the calibration tokens.
        SourceError: the tokenizer cannot be loaded.
    """
    decode = _decoder(statistics, model)
    token_ids = statistics.token_ids()
    n_micro = sum(len(topic.micro_topics) for topic in topics)
    filled = sum(topic.n_tokens > 0 for topic in topics)
    lines = [f"{len(topics)} topics of {n_micro} micro-topics, {filled} with tokens; {token_ids.size} tokens"]
    for number, topic in enumerate(topics, start=1):
        members = ", ".join(map(str, topic.micro_topics))
        share = topic.n_tokens / token_ids.size
        lines += ["", f"{number}: {topic.n_tokens} tokens ({share:.2%}), micro-topics {members}"]
        for document, position in topic.places[:n_examples]:
            lines.append(f"    {_in_context(token_ids[document], position, decode)}")
    return lines


def _in_context(tokens: NDArray[np.int32], position: int, decode: Any) -> str:
    """Return a token between brackets, and its neighbours."""
    parts = (
        tokens[max(0, position - CONTEXT) : position],
        tokens[position : position + 1],
        tokens[position + 1 : position + 1 + CONTEXT],
    )
    before, token, after = (decode(part.tolist()).replace("\n", "\\n") for part in parts)
    return f"{before}[{token}]{after}"


def _decoder(statistics: Statistics, model: Path) -> Any:
    from neuronrank.checkpoint import open_model
    from neuronrank.tokenisation import load_tokenizer

    opened = open_model(model)
    opened.require_its_tokenizer()
    made_by = statistics.manifest["model"].get("tokenizer_sha256", "")
    if made_by != opened.tokenizer_sha256:
        raise MismatchError(
            f"{statistics.directory}: its tokens were made by tokenizer {made_by[:12]}…, {model} has "
            f"{opened.tokenizer_sha256[:12]}…. Give --model the model that the statistics were collected from"
        )
    tokenizer: Any = load_tokenizer(opened.weights_directory)
    return tokenizer.decode
