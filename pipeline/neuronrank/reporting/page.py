"""One self-contained HTML page: no script, no network."""

from collections.abc import Mapping, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from neuronrank.reporting.charts import factor_chart, perplexity_chart, sparsity_chart
from neuronrank.reporting.details import Records
from neuronrank.reporting.results import Row
from neuronrank.reporting.tables import three_digits


def render(rows: Sequence[Row], sparsity: Records, factors: Records, reference: str, facts: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        rows: the results.
        sparsity: by layer.
        factors: percentiles of every module's factor.
        reference: the recipe that the others are compared with.
        facts: what the results were measured on, shown at the top.
    """
    environment = Environment(
        loader=PackageLoader("neuronrank.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["three_digits"] = three_digits
    tables = {text: [row for row in rows if row.text == text] for text in dict.fromkeys(row.text for row in rows)}
    charts = {
        "perplexity": perplexity_chart(rows),
        "sparsity": sparsity_chart(sparsity),
        "factors": factor_chart(factors),
    }
    return environment.get_template("page.html").render(tables=tables, charts=charts, reference=reference, facts=facts)
