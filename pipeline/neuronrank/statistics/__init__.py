"""What `collect` accumulates, one file each; METHODS section 2 gives every statistic its number.

| file               | id | content                                                    |
|--------------------|----|------------------------------------------------------------|
| `document_sums.py` | S1 | per document and channel: sum, sum_abs, sum_sq             |
| `weight_sums.py`   | S5 | per row and column of a weight: sum_abs, sum_sq, max_abs   |

An activation statistic is a class `Accumulator` with `STATISTICS` (which arrays it makes of which tap), `update` and
`result`; the collection loop gives it every tapped tensor of a layer, whole documents at a time.
"""
