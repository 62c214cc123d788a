"""Storage profiles as data: which statistics are kept of which tap.

| profile    | holds                                                                                              |
|------------|----------------------------------------------------------------------------------------------------|
| `wanda`    | total sums of squares of the modules' inputs: what Wanda reads, and nothing else                   |
| `lean`     | totals over all documents and counts; no document axis, no sketches, classes or topics             |
| `standard` | what the methods need at nearly any setting: sums per document, sketches of inputs and neurons,    |
|            | class moments, topic sums; not spikiness of q, k, v outputs, nor signs of document or topic means  |
| `full`     | every sum of every tap per document and topic, sketches of every tap, the `gate_pre` tap; unrounded |
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from neuronrank.statistics_schema import TOTALS
from neuronrank.tap_names import base, expert

ProfileName = Literal["wanda", "lean", "standard", "full"]
Kept = Mapping[str, tuple[str, ...]]

INPUTS = ("attn_in", "attn_ctx", "mlp_in", "mlp_mid")
NEURONS = ("q_out", "k_out", "v_out", "attn_ctx", "neuron")
TAPS = ("attn_in", "q_out", "k_out", "v_out", "attn_ctx", "mlp_in", "neuron", "mlp_mid")


@dataclass(frozen=True)
class Profile:
    """Which arrays are kept; a tap that is nowhere named is not tapped."""

    totals: Kept
    """tap -> sums over all tokens."""
    counted: frozenset[str]
    """Taps with counts of a > 0 and |a| > 1e-6; among `totals`."""
    documents: Kept = field(default_factory=dict)
    """tap -> sums kept for every document; among `totals`."""
    sketched: frozenset[str] = frozenset()
    """Taps whose |a| is sketched."""
    signed: frozenset[str] = frozenset()
    """Sketched taps whose negative values are also counted apart."""
    classed: frozenset[str] = frozenset()
    """Taps with moments of every token class."""
    topical: Kept = field(default_factory=dict)
    """tap -> sums kept for every micro-topic."""
    rounded: bool = True
    """Floats are rounded to the bits that `statistics_schema` states, so that they compress."""

    @property
    def taps(self) -> frozenset[str]:
        """Every tap that anything is kept of."""
        return frozenset(self.totals)


def _sums(*needs: tuple[tuple[str, ...], str]) -> dict[str, tuple[str, ...]]:
    kept: dict[str, tuple[str, ...]] = {}
    for taps, statistic in needs:
        for tap in taps:
            kept[tap] = (*kept.get(tap, ()), statistic)
    return kept


_PER_DOCUMENT = _sums((INPUTS, "sum_sq"), (TAPS, "sum_abs"), (("neuron",), "sum"))
_TOTALS = _sums(((*INPUTS, "neuron"), "sum_sq"), (TAPS, "sum_abs"), (("neuron",), "sum"))
_ALL_TAPS = (*TAPS, "gate_pre")
_ALL_SUMS = dict.fromkeys(_ALL_TAPS, ("sum", "sum_abs", "sum_sq", "max_abs"))

PROFILES: Mapping[ProfileName, Profile] = {
    "wanda": Profile(totals=dict.fromkeys(INPUTS, ("sum_sq",)), counted=frozenset()),
    "lean": Profile(totals=_TOTALS, counted=frozenset(TAPS)),
    "standard": Profile(
        totals=_TOTALS,
        counted=frozenset(TAPS),
        documents=_PER_DOCUMENT,
        sketched=frozenset({*INPUTS, "neuron"}),
        classed=frozenset({"neuron"}),
        topical=_sums((NEURONS, "sum_abs")),
    ),
    "full": Profile(
        totals=_ALL_SUMS,
        counted=frozenset(_ALL_TAPS),
        documents=_ALL_SUMS,
        sketched=frozenset(_ALL_TAPS),
        signed=frozenset(_ALL_TAPS),
        classed=frozenset({"neuron"}),
        topical=dict.fromkeys(_ALL_TAPS, ("sum", "sum_abs", "max_abs")),
        rounded=False,
    ),
}


_OF_SKETCHES = ("total_min", "quantiles", "top_tenth_mean", "n_above_pooled", "n_above_mean")


def smallest_with(tap: str, array: str) -> ProfileName | None:
    """Return the first profile that holds an array of a tap, or None: then it depends on another parameter."""
    return next((name for name, profile in PROFILES.items() if holds(profile, tap, array)), None)


def holds(profile: Profile, tap: str, array: str) -> bool:
    """Say whether a profile keeps an array of a tap; classes and topics as far as there are any."""
    in_expert, tap = expert(tap) is not None, base(tap)
    if array == "n_tokens":
        return in_expert and tap in profile.totals
    if array == "class_count":
        return in_expert and tap in profile.classed
    if array == "topic_count":
        return in_expert and tap in profile.topical
    if array in TOTALS:
        return array in profile.documents.get(tap, ())
    if array in TOTALS.values():
        return any(TOTALS[statistic] == array for statistic in profile.totals.get(tap, ()))
    if array == "sketch_negative_count":
        return tap in profile.signed
    if array.startswith("sketch") or array in _OF_SKETCHES:
        return tap in profile.sketched
    if array.startswith("class"):
        return tap in profile.classed
    if array in ("topic_tf", "topic_df_count"):
        return "sum_abs" in profile.topical.get(tap, ())
    if array.startswith("topic"):
        return array.removeprefix("topic_") in profile.topical.get(tap, ())
    if array == "df_count":
        return "sum_abs" in profile.totals.get(tap, ())
    return array in ("n_positive", "n_above_floor") and tap in profile.counted
