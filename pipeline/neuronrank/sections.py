"""Which rows of a weight that several modules share are whose."""

from neuronrank.errors import MismatchError
from neuronrank.models import Fused, Section
from neuronrank.module_views import Rows


def section_rows(section: Section, n_rows: int, n_context: int, n_heads: int, fused: Fused) -> Rows:
    """Return which rows of a shared weight a module's are.

    Args:
        section: the module.
        n_rows: of the weight.
        n_context: width of the attention's context: all query heads together.
        n_heads: query heads.
        fused: how q, k and v lie.

    Raises:
        MismatchError: they cannot lie so.
    """
    if section in ("gate", "up"):
        _require(n_rows % 2 == 0, f"{n_rows} rows are not gate and up")
        return Rows(0 if section == "gate" else n_rows // 2, n_rows // 2, n_rows)
    n_keys = (n_rows - n_context) // 2
    _require(n_keys > 0 and n_context + 2 * n_keys == n_rows, f"{n_rows} rows are not {n_context} of q, and k and v")
    if fused == "one after the other":
        offset = {"q": 0, "k": n_context, "v": n_context + n_keys}[section]
        return Rows(offset, n_context if section == "q" else n_keys, n_rows)
    _require(n_context % n_heads == 0, f"{n_context} rows of q are not {n_heads} heads")
    width = n_context // n_heads
    _require(n_keys % width == 0 and n_context % n_keys == 0, f"{n_keys} rows of k are not heads of {width}")
    queries = n_context // (n_keys // width)  # rows of the queries of one key head
    offset = {"q": 0, "k": queries, "v": queries + width}[section]
    return Rows(offset, queries if section == "q" else width, queries + 2 * width)


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise MismatchError(f"a weight shared by several modules: {fault}. Is config.json that of the weights?")
