"""Whether statistics that are yet to be collected will hold what a recipe reads: told before the forward pass.

The recipe is scored on a stand-in: an artifact of one small layer, of the planned profile, classes, topics and number
of documents, filled with random numbers. What such numbers cannot rank is no fault of the plan.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank import registry
from neuronrank.collection import CollectParams
from neuronrank.errors import ArtifactError, DegenerateError, MismatchError, NotFiniteError, ParamsError
from neuronrank.profiles import PROFILES, holds
from neuronrank.recipes import Recipe
from neuronrank.scores import factor_steps
from neuronrank.sketch import N_BINS
from neuronrank.statistics_schema import ARRAYS
from neuronrank.statistics_store import Module, Statistics
from neuronrank.tap_names import base, of_expert

_CHANNELS, _TOKENS = 3, 512


def require_sufficient(
    collect: CollectParams,
    n_documents: int,
    recipe: Recipe,
    where: str,
    architecture: str,
    lowest_activation: float = 0.0,
) -> None:
    """Refuse a recipe that reads what the planned statistics will not hold.

    What depends on the activations themselves is found when the recipe is scored.

    Args:
        collect: what will be kept.
        n_documents: calibration windows.
        recipe: a method for each part.
        where: of the recipe, for the message.
        architecture: `config.model_type`.
        lowest_activation: of the MLP's activation function, in activation; 0 when it is not known. Above it a negative
            threshold's counts need the signs of a sketch.

    Raises:
        ParamsError: names the statistic, and what to set.
    """
    planned = _Planned(collect, n_documents, architecture, lowest_activation)
    for step in factor_steps(planned, recipe):
        try:
            step()
        except (ArtifactError, MismatchError) as err:
            raise ParamsError(f"{where}: {err}") from err
        except (DegenerateError, NotFiniteError):  # a fault of the random numbers, not of the plan
            continue


class _Planned(Statistics):
    """One layer of the planned artifact."""

    def __init__(self, collect: CollectParams, n_documents: int, architecture: str, lowest_activation: float) -> None:
        self._profile = PROFILES[collect.profile]
        self.directory = Path("the planned statistics")
        self.manifest = {
            "profile": collect.profile,
            "collect": {"classes": collect.classes, "topics": collect.topics.model_dump()},
            "calibration": {"window_tokens": _TOKENS},
            "arrays": {},
        }
        self.n_documents = n_documents
        inside = {True: 0, False: None}  # of a mixture one expert stands for all
        self.modules = [
            Module(
                name=f"{role.path}.{role.section or ''}",
                layer=0,
                part=role.part,
                shape=(_CHANNELS, _CHANNELS),
                input_tap=of_expert(role.input_tap, inside[role.in_expert]),
                neuron_tap=of_expert(role.neuron_tap, inside[role.in_expert]),
                neuron_axis=role.neuron_axis,
                weight=role.path,
                rows=None,
                transposed=False,
            )
            for role in registry.load("models", architecture).LAYOUT.linears
        ]
        self._lowest = lowest_activation
        self._sizes = {
            "document": n_documents,
            "channel": _CHANNELS,
            "bin": N_BINS,
            "class": collect.classes + 1 if self._profile.classed else 0,
            "topic": collect.topics.micro_topics if self._profile.topical else 0,
        }

    def layer_values(self, layer: int, tap: str, statistic: str) -> NDArray[Any]:
        """Return random numbers for an array that the profile keeps."""
        sizes = [self._sizes.get(axis, 2) for axis in ARRAYS[statistic].axes]
        kept = tap == "topics" or holds(self._profile, tap, statistic)
        if not (kept and all(sizes)) or (statistic.startswith("class") and self._sizes["class"] == 1):
            raise ArtifactError(f"{self.directory}: {self._why_missing(tap, statistic)}")
        if statistic == "n_tokens":
            return np.full(sizes, _TOKENS)
        if statistic == "merges":
            n_topics = self._sizes["topic"]
            if n_topics < 2:
                return np.zeros((0, 2), dtype=np.int64)
            return np.array([[0, 1], *([n_topics + step, step + 2] for step in range(n_topics - 2))])
        if statistic == "total_min":
            return np.full(sizes, self._lowest if base(tap) == "neuron" else 0.0)
        n_tokens = self.n_documents * _TOKENS
        if statistic == "n_positive":
            return np.arange(1, _CHANNELS + 1) * (n_tokens // (_CHANNELS + 1))
        drawn = np.random.default_rng([layer, len(tap), len(statistic)])
        if statistic == "sketch_count":  # of n_tokens values, spread about another bin in every channel
            middles = N_BINS * np.arange(1, _CHANNELS + 1)[:, None] / (_CHANNELS + 1)
            share = np.exp(-np.abs(np.arange(N_BINS) - middles) / 50)
            return np.stack([drawn.multinomial(n_tokens, row / row.sum()) for row in share])
        signed = statistic in ("sum", "topic_sum", "class_sum")
        return drawn.integers(-8 if signed else 1, 9, sizes)

    def class_count(self) -> NDArray[np.int64]:
        """Return how often each class comes."""
        return np.arange(self._sizes["class"], dtype=np.int64) + 2

    def weight_sums(self, module: str, name: str) -> NDArray[np.float32]:
        """Return the sums of a weight of nobody."""
        del module, name
        return np.arange(_CHANNELS, dtype=np.float32) + 1
