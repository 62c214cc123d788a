"""Whether a pattern can prune by the scores of a recipe: told before anything is computed."""

from neuronrank.masks import MaskedModule
from neuronrank.patterns import Pattern
from neuronrank.recipes import Recipe, RecipePart
from neuronrank.scores import scored_parts


def why_unfit(recipe: Recipe, pattern: Pattern) -> str | None:
    """Return why a pattern cannot prune by a recipe's scores, whatever the model; None when it can.

    Args:
        recipe: a method for each part.
        pattern: rule and selection.
    """
    parts = scored_parts(recipe)
    selected = {name: part for name, part in parts.items() if getattr(pattern.params, name)}
    if pattern.rule.RANKS == "neurons":
        mlp = parts.get("mlp", {})
        why = f"method {mlp.get('method', 'none')!r} of the MLP has no neuron score (`neuronrank methods` lists those)"
        return None if mlp.get("neurons") else why
    for name, part in selected.items():
        if not part["elements"]:
            return (
                f"method {part['method']!r} of {name} ranks whole neurons, as structured masks do, not single weights"
            )
        by_row = pattern.rule.group(pattern.params, MaskedModule(name, name, part["default_group"])) == "row"
        if by_row and _is_constant_in_rows(name, recipe[name]):
            return f"the score of {part['method']!r} is the same all along a row, and the pattern compares within rows"
    found = selected or pattern.params.lm_head
    return None if found else f"the recipe scores {', '.join(parts) or 'nothing'}, which the pattern leaves dense"


def why_not_by_layer(pattern: Pattern) -> str | None:
    """Return why a pattern cannot prune one layer before the next one is looked at; None when it can.

    Args:
        pattern: rule and selection.
    """
    if getattr(pattern.params, "group", None) == "global":
        return "group: global compares the weights of all layers, and a layer is pruned before the next one is seen"
    if pattern.params.lm_head:
        return "lm_head: true prunes the output head, which is no layer"
    return None


def _is_constant_in_rows(name: str, part: RecipePart) -> bool:
    """Say whether a part has modules in which only factors on rows count: q, k, v, gate and up by their neurons."""
    element = part.method.element(name, part.params)
    by_weight = element.weight == "element" and element.weight_exp != 0 and element.weight_multi != 0
    return not by_weight and element.channels in ("neuron", "gate_pre")
