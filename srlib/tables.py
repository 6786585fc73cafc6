"""CSV files that people write, and those we write for them: one reader for all, one writer."""

import csv
import io
import os
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from srlib.paths import InputError, atomic, file_name, first_line

VOLUMES = ("t1", "t2", "image", "labels", "lr", "mask")  # columns of a manifest, in the order written
SEPARATORS = {";": "semicolons", "\t": "tabs", "\0": "the zeros of UTF-16"}


class Row(dict[str, str]):
    """The cells of a row by column; ``place`` says where it stands, for messages."""

    place: str


def read_table(path: str | Path, needed: Sequence[str] = (), optional: Sequence[str] | None = None) -> list[Row]:
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
        lines = [[c.strip() for c in cells] for cells in csv.reader(io.StringIO(text, ""), skipinitialspace=True)]
    except UnicodeDecodeError as err:
        raise InputError(f"{path}: cannot be read as a CSV, since it is not UTF-8; save it as 'CSV UTF-8'") from err
    except (OSError, csv.Error) as err:
        reason = getattr(err, "strerror", None) or first_line(err)
        raise InputError(f"{path}: cannot be read as a CSV ({reason}); give the path of one") from err
    rows = [(number, cells) for number, cells in enumerate(lines, 1) if any(cells)]
    header = _without_empty_end(rows[0][1]) if rows else []
    for sign, name in SEPARATORS.items():
        if any(sign in column for column in header):
            raise InputError(f"{path}: {name} between its cells, expected commas; save it as 'CSV UTF-8 (comma)'")
    wrong = {
        "a column stands twice,": [c for i, c in enumerate(header) if c and c in header[:i]],
        "unknown column": [c for c in header if c and optional is not None and c not in (*needed, *optional)],
        "no column": [c for c in needed if header and c not in header],
    }
    for what, columns in wrong.items():
        if columns:
            perhaps = f" and any of {', '.join(optional)}" if optional else ""
            raise InputError(f"{path}: {what} {columns[0]!r}; expected {', '.join(needed)}{perhaps}")
    if len(rows) < 2:
        raise InputError(f"{path}: expected a header and at least one row, got {len(rows)} lines; see csv/README.md")
    return [_row(f"{path}, row {number}", header, cells, needed) for number, cells in rows[1:]]


def _row(place: str, header: list[str], cells: list[str], needed: Sequence[str]) -> Row:
    if len(_without_empty_end(cells)) > len(header):
        raise InputError(f"{place}: {len(cells)} cells under {len(header)} columns")
    for name in needed:
        if header.index(name) >= len(cells):
            raise InputError(f"{place}, column {name}: the row ends before it")
    if any(cell for column, cell in zip(header, cells, strict=False) if not column):
        raise InputError(f"{place}: a cell under a column without a name; name the column, or leave it out")
    row = Row(zip(filter(None, header), [""] * len(header), strict=False))
    row.update((column, cell) for column, cell in zip(header, cells, strict=False) if column)
    row.place = place
    return row


def _without_empty_end(cells: list[str]) -> list[str]:
    """A row but for its last cells, where these are empty."""
    return cells[: max((i for i, cell in enumerate(cells, 1) if cell), default=0)]


def check_name(name: str, place: str, taken: dict[str, str]) -> None:
    """A subject's name, which will name files; it is added to those ``taken``.

    Raises InputError, naming the place: no name, one with a slash, a first dot or what cannot be printed, and one that
    differs from another by case, spaces or the form of its accents alone, which file systems take for the same.
    """
    if name.startswith(".") or not name.isprintable():
        raise InputError(
            f"{place}: {name!r} cannot name a file; expected printable letters without slashes and a first dot"
        )
    key = " ".join(unicodedata.normalize("NFKC", file_name(name, place)).casefold().split())
    if key in taken:
        also = "" if taken[key] == name else f", once as {taken[key]}"
        raise InputError(f"{place}: {name} stands twice{also}; one row per subject, under a name of its own")
    taken[key] = name


def write_table(
    path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[object]], force: bool = False
) -> Path:
    """Write a CSV, UTF-8 and atomically; the same rows give the same bytes.

    Raises InputError when something else is there, unless ``force``, and for a name that is not UTF-8.
    """
    writer = csv.writer(text := io.StringIO(), lineterminator="\n")
    writer.writerows([columns, *rows])
    try:
        content = text.getvalue().encode()
    except UnicodeEncodeError as err:
        name = repr(text.getvalue()[max(err.start - 40, 0) : err.end + 20])
        raise InputError(f"{path}: a file's name is not UTF-8, near {name}; rename the file") from err
    with suppress(OSError):
        if Path(path).read_bytes() == content:
            return Path(path)
    keep(path, force)
    with atomic(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def keep(path: str | Path, force: bool = False) -> None:
    """Raise InputError when something is at ``path`` already, unless ``force``: nothing is replaced unasked."""
    if os.path.lexists(path) and not force:
        raise InputError(f"{path} exists; --force replaces it, or choose another name")
