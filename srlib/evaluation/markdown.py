"""Write result tables in Markdown."""

import pandas as pd

from srlib.evaluation.results import DIGITS

SHOWN = {"gain": 2, "spread": 2, "scans": 0, "seeds": 0, **DIGITS}  # digits of numbers


def to_text(table: pd.DataFrame) -> str:
    """A table as aligned Markdown, numbers with the digits of SHOWN, empty columns left out."""
    columns = []
    for name, values in table.dropna(axis="columns", how="all").items():
        number = name in SHOWN and pd.api.types.is_numeric_dtype(values)
        if number:
            values = values.map(f"{{:.{SHOWN[name]}f}}".format, na_action="ignore").fillna("")
        cells = [name, *values]
        width = max(map(len, cells))
        cells.insert(1, "-" * (width - 1) + (":" if number else "-"))
        columns.append([cell.rjust(width) if number else cell.ljust(width) for cell in cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in zip(*columns, strict=True))
