"""Parameters of the report: what was swept, and whom the recipes are compared with."""

from pydantic import Field

from neuronrank.params import Section


class SweepParams(Section):
    """Which recipes are pruned and evaluated, with which patterns."""

    recipes: list[str] = Field(min_length=1)
    patterns: list[str] = Field(min_length=1)


class SequentialParams(Section):
    """Which recipes are also pruned layer by layer, each on what the pruned layers before it give."""

    recipes: list[str]
    patterns: list[str]


class ReportParams(Section):
    """How recipes are compared."""

    reference: str
    """A recipe of the sweep; the others are compared with it, window by window, at the same pattern."""
    seed: int = Field(ge=0)
    """Of the bootstrap."""
