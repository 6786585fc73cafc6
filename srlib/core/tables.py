"""Read the CSV files that people write, and write our own."""

import csv
import io
import itertools
import os
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from srlib.core.paths import InputError, StrPath, explained, file_name, write_file

# columns of a manifest that name volumes, in the order written
VOLUMES = ("t1", "t2", "image", "labels", "lr", "mask")
SEPARATORS = {";": "semicolons", "\t": "tabs", "\0": "the zeros of UTF-16"}


class Row(dict[str, str]):
    """The cells of a row by column; ``place`` is the file and row, for messages."""

    place: str


def read_table(
    path: StrPath, needed: Sequence[str] = (), optional: Sequence[str] | None = None
) -> list[Row]:
    """Read the rows of a CSV, without spaces around cells, empty rows and empty nameless columns.

    A missing cell at the end of a row is empty. Where ``optional`` columns are given, all columns
    but these and the ``needed`` ones are refused. Raises InputError, naming row and column, for a
    file that is not UTF-8 or has no commas, a quote that never closes, a column that is unknown,
    missing, repeated or nameless, a row that is too long or ends before a needed column, and a
    table without rows.
    """
    with explained(path, "cannot be read as a CSV", "give the path of one"):
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as err:
            raise InputError(
                "cannot be read as a CSV, since it is not UTF-8; save it as 'CSV UTF-8'"
            ) from err
        if text.count('"') % 2:
            raise csv.Error("a quote never closes")
        lines = list(csv.reader(io.StringIO(text, ""), skipinitialspace=True))
    lines = [[cell.strip() for cell in cells] for cells in lines]
    rows = {f"{path}, row {number}": cells for number, cells in enumerate(lines, 1) if any(cells)}
    if len(rows) < 2:
        raise InputError(
            f"{path}: expected a header and at least one row, got {len(rows)} lines; "
            "see csv/README.md"
        )
    (_, header), *rest = rows.items()
    _check(path, [*filter(None, header)], needed, optional)
    return [_row(place, header, cells, needed) for place, cells in rest]


def _check(path, columns, needed, optional):
    """Raise InputError for wrong separators, and for repeated, unknown or missing columns."""
    for sign, name in SEPARATORS.items():
        if sign in "".join(columns):
            raise InputError(
                f"{path}: {name} between its cells, expected commas; save it as 'CSV UTF-8 (comma)'"
            )
    known = columns if optional is None else (*needed, *optional)
    wrong = {
        "a column stands twice,": [c for c in columns if columns.count(c) > 1],
        "unknown column": [c for c in columns if c not in known],
        "no column": [c for c in needed if c not in columns],
    }
    for what, names in wrong.items():
        if names:
            perhaps = f" and any of {', '.join(optional)}" if optional else ""
            raise InputError(f"{path}: {what} {names[0]!r}; expected {', '.join(needed)}{perhaps}")


def _row(place, header, cells, needed):
    """The cells of a row by column; InputError for one too many, or too few of the needed ones."""
    row = Row()
    row.place = place
    for column, cell in itertools.zip_longest(header, cells):
        if column:
            row[column] = cell or ""
        elif cell:
            named = len([*filter(None, header)])
            raise InputError(
                f"{place}: {len(cells)} cells under {named} columns; {cell!r} has no column"
            )
        if column in needed and cell is None:
            raise InputError(f"{place}, column {column}: the row ends before it")
    return row


def check_name(name: str, place: str, taken: dict[str, str]) -> None:
    """Check a subject's name, which will name files, and add it to those ``taken``.

    Raises InputError, naming the place, as ``file_name``, and for a name that differs from another
    one only by case, spaces or the form of its accents, since file systems take both for the same.
    """
    key = " ".join(unicodedata.normalize("NFKC", file_name(name, place)).casefold().split())
    if key in taken:
        also = "" if taken[key] == name else f", once as {taken[key]}"
        raise InputError(
            f"{place}: {name} stands twice{also}; one row per subject, under a name of its own"
        )
    taken[key] = name


def write_table(
    path: StrPath,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    force: bool = False,
) -> Path:
    """Write a CSV, UTF-8 and atomically; the same rows give the same bytes.

    Raises InputError for a name that is not UTF-8, and, without ``force``, when ``path`` holds
    something else.
    """
    path, buffer = Path(path), io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([columns, *rows])
    text = buffer.getvalue()
    with suppress(OSError):
        if path.read_bytes() == text.encode(errors="surrogatepass"):
            return path
    keep(path, force=force)
    return write_file(path, text)


def keep(path: StrPath, *, force: bool) -> None:
    """Raise InputError when ``path`` exists, unless ``force``: nothing is replaced unasked."""
    if os.path.lexists(path) and not force:
        raise InputError(f"{path} exists; --force replaces it, or choose another name")
