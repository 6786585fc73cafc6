"""CSV files that people write, and those we write for them: one reader for all, one writer."""

import csv
import io
import itertools
import os
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from srlib.core.paths import InputError, atomic, file_name, first_line

VOLUMES = (
    "t1",
    "t2",
    "image",
    "labels",
    "lr",
    "mask",
)  # columns of a manifest, in the order written
SEPARATORS = {";": "semicolons", "\t": "tabs", "\0": "the zeros of UTF-16"}


class Row(dict[str, str]):
    """The cells of a row by column; ``place`` says where it stands, for messages."""

    place: str


def read_table(
    path: str | Path, needed: Sequence[str] = (), optional: Sequence[str] | None = None
) -> list[Row]:
    """Rows of a CSV by column, without the spaces around cells, rows of empty cells, and columns of neither name nor cell.

    A cell that is missing at the end of a row is empty. Columns other than the ``needed`` and the ``optional`` ones are
    refused, where these are given. Raises InputError, naming row and column: not UTF-8, no commas, a quote that
    never closes, a column that is unknown, missing, twice there or without a name, a row that is too long or ends
    before a needed column, no row at all.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        if text.count('"') % 2:
            raise csv.Error("a quote never closes")
        lines = [
            [c.strip() for c in cells]
            for cells in csv.reader(io.StringIO(text, ""), skipinitialspace=True)
        ]
    except UnicodeDecodeError as err:
        raise InputError(
            f"{path}: cannot be read as a CSV, since it is not UTF-8; save it as 'CSV UTF-8'"
        ) from err
    except (OSError, csv.Error) as err:
        reason = getattr(err, "strerror", None) or first_line(err)
        raise InputError(
            f"{path}: cannot be read as a CSV ({reason}); give the path of one"
        ) from err
    rows = {f"{path}, row {number}": cells for number, cells in enumerate(lines, 1) if any(cells)}
    if len(rows) < 2:
        raise InputError(
            f"{path}: expected a header and at least one row, got {len(rows)} lines; see csv/README.md"
        )
    (_, header), *rest = rows.items()
    _check(path, [*filter(None, header)], needed, optional)
    return [_row(place, header, cells, needed) for place, cells in rest]


def _check(
    path: str | Path, columns: list[str], needed: Sequence[str], optional: Sequence[str] | None
) -> None:
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


def _row(place: str, header: list[str], cells: list[str], needed: Sequence[str]) -> Row:
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
    """A subject's name, which will name files; it is added to those ``taken``.

    Raises InputError, naming the place: no name, one with a slash, a first dot or what cannot be printed, and one that
    differs from another by case, spaces or the form of its accents alone, which file systems take for the same.
    """
    key = " ".join(unicodedata.normalize("NFKC", file_name(name, place)).casefold().split())
    if key in taken:
        also = "" if taken[key] == name else f", once as {taken[key]}"
        raise InputError(
            f"{place}: {name} stands twice{also}; one row per subject, under a name of its own"
        )
    taken[key] = name


def write_table(
    path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[object]], force: bool = False
) -> Path:
    """Write a CSV, UTF-8 and atomically; the same rows give the same bytes.

    Raises InputError when something else is there, unless ``force``, and for a name that is not UTF-8.
    """
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([columns, *rows])
    text = buffer.getvalue()
    with suppress(OSError):
        if Path(path).read_bytes() == text.encode(errors="surrogatepass"):
            return Path(path)
    keep(path, force)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
    return Path(path)


def keep(path: str | Path, force: bool = False) -> None:
    """Raise InputError when something is at ``path`` already, unless ``force``: nothing is replaced unasked."""
    if os.path.lexists(path) and not force:
        raise InputError(f"{path} exists; --force replaces it, or choose another name")
