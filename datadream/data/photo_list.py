"""Lists of photos: a CSV or JSON Lines file that says of every photo its class, and perhaps its part."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import fsspec

from datadream.config import nearest
from datadream.data.decode import IMAGE_SUFFIXES
from datadream.data.listing import Listing, one_spelling, part_of

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl")
PATH_COLUMNS = (
    *("path", "file", "file_name", "filename", "filepath", "file_path", "image", "image_path", "image_id"),
    *("img", "img_path", "photo"),
)
LABEL_COLUMNS = ("class_name", "label", "class", "category", "labels", "target", "y")
SPLIT_COLUMNS = ("split", "part", "subset", "set", "partition")
"""How people call the columns, in any case; of several the first here."""


@dataclass(frozen=True, slots=True)
class Row:
    """A photo of a list."""

    number: int
    """The line of the file on which it ends; the first is 1."""
    path: str
    label: str
    split: str | None
    """None where the list has no such column."""


def list_rows(fs: fsspec.AbstractFileSystem, path: str) -> Listing:
    """Photos of a list, with paths below its folder; without a column of splits all of them are in the pool.

    Raises ValueError naming the row and its value where a path is empty, leads out of the folder, is listed twice or
    does not exist, where a class is empty or has no training photo, and where a split is unknown; and when there are
    no two classes.
    """
    name, folder = posixpath.basename(path), posixpath.dirname(path)
    rows = list(_rows(name, list_entries(fs, path)))
    parts = []
    for row in rows:
        part = "pool" if row.split is None else part_of(row.split)
        if part is None:
            hint = nearest(row.split or "", ["train", "val", "test"])
            raise _wrong(name, row, f"split {row.split!r} is unknown. {hint}")
        parts.append(part)
    keys = _keys(name, folder, rows)
    labels = {label: number for number, label in enumerate(sorted({row.label for row in rows}))}
    if len(labels) < 2:
        shown = f" ({next(iter(labels))})" if labels else ""
        raise ValueError(f"list {name!r} has {len(labels)} classes{shown}: need at least 2.")
    trained = {row.label for row, part in zip(rows, parts, strict=True) if part == "pool"}
    if untrained := next((row for row in rows if row.label not in trained), None):
        known = f"Known: {', '.join(sorted(trained)[:12])}." if trained else "No row has the split train."
        raise _wrong(name, untrained, f"class {untrained.label!r} has no training photo. {known}")
    found, left_out = _find_files(fs, folder, keys)
    if missing := [row for row, key in zip(rows, keys, strict=True) if key not in found]:
        more = f", nor do those of {len(missing) - 1} further rows" if len(missing) > 1 else ""
        said = f"{missing[0].path!r} does not exist{more}. Paths count from the list's folder {folder!r}."
        raise _wrong(name, missing[0], said)
    listing = Listing(tuple(labels), left_out=left_out)
    for row, part, key in zip(rows, parts, map(found.__getitem__, keys), strict=True):
        listing.keys.setdefault(part, []).append((key, labels[row.label]))
    return listing


def list_entries(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a list, each with its number and its values by column, in small letters; raises ValueError naming
    the first that is none."""
    name = posixpath.basename(path)
    try:
        text = fs.cat_file(path).decode("utf-8-sig")  # Excel begins a file with a mark
    except UnicodeDecodeError:
        raise ValueError(f"list {name!r} is not in UTF-8. Save it as UTF-8.") from None
    entries = _json_entries(name, text) if name.lower().endswith(".jsonl") else _csv_entries(name, text)
    for number, entry in entries:
        yield number, {column.strip().lower(): value for column, value in entry.items()}


def _rows(name: str, entries: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Row]:
    columns: tuple[str | None, ...] | None = None
    for number, found in entries:
        # Of JSON every row has its own names; they are taken to be those of the first.
        columns = columns or _columns(name, list(found))
        if columns[2] is None and (late := next((each for each in SPLIT_COLUMNS if each in found), None)):
            raise ValueError(f"list {name!r}, row {number}: it has a {late!r}, which rows above lack. Give all one.")
        cells = (found.get(column) if column else None for column in columns)
        # As text: JSON has numbers for labels, and null where a CSV has nothing.
        path, label, split = ("" if value is None else str(value).strip() for value in cells)
        row = Row(number, path, one_spelling(label), split if columns[2] else None)
        for what, value in (("path", row.path), ("class", row.label)):
            if not value:
                raise _wrong(name, row, f"the {what} is {value!r}, and every photo needs one. Fill it in.")
        yield row


def _columns(name: str, found: Sequence[str]) -> tuple[str | None, ...]:
    """The columns of paths, labels and splits; the last may be missing."""
    columns = [next((each for each in known if each in found), None) for known in (PATH_COLUMNS, LABEL_COLUMNS)]
    for column, what, known in zip(columns, ("paths", "classes"), (PATH_COLUMNS, LABEL_COLUMNS), strict=True):
        if column is None:
            raise ValueError(
                f"list {name!r} has no column of {what} (it has: {', '.join(found)}). Its first line names the "
                f"columns: call it {' or '.join(known[:3])}."
            )
    return *columns, next((each for each in SPLIT_COLUMNS if each in found), None)


def _csv_entries(name: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Spreadsheets of half of Europe write semicolons.
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    # newline="": cells in quotes may hold ends of lines, by which the reader's line numbers go as well.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = next(reader, [])
        for cells in reader:
            # Spreadsheets end rows with empty cells; one that is not empty is the rest of a text.
            if beyond := next((cell for cell in cells[len(header) :] if cell.strip()), None):
                raise ValueError(
                    f"list {name!r}, row {reader.line_num}: {beyond.strip()!r} is in no column. Put texts that have a "
                    f"{delimiter!r} in them in double quotes."
                )
            if any(cell.strip() for cell in cells):
                yield reader.line_num, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise ValueError(f"list {name!r}, row {reader.line_num}: it is no CSV ({error}).") from None


def _json_entries(name: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not splitlines: it ends lines at U+2028 and others, which JSON has inside of texts.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                raise ValueError(f"list {name!r}, row {number}: {line.strip()[:60]!r} is no JSON object.")
            yield number, entry


def _keys(name: str, folder: str, rows: Sequence[Row]) -> list[str]:
    """Paths from the list's folder, in one spelling: so the photos are found again when they move, and published
    records tell no folder of this machine."""
    known: dict[str, Row] = {}
    for row in rows:
        inside = row.path.removeprefix(f"{folder}/") if folder else row.path
        key = one_spelling(posixpath.normpath(inside))
        if key.startswith(("/", "../")):
            raise _wrong(name, row, f"{row.path!r} is outside of the list's folder. Put the list above the photos.")
        if (other := known.setdefault(key, row)) is not row:
            raise _wrong(name, row, f"{row.path!r} is listed in row {other.number} already. Remove one.")
    return list(known)


def _find_files(
    fs: fsspec.AbstractFileSystem, folder: str, keys: Sequence[str]
) -> tuple[dict[str, str], Counter[str]]:
    """The files that are there, as they lie there, by their keys; and how many photos beside them are not listed.

    One listing for each folder: asking an object store for every file takes minutes.
    """

    @cache
    def place_of(below: str) -> str | None:
        """A folder as it is spelt there; None where it is not there."""
        if fs.isdir(posixpath.join(folder, below)):
            return below
        above, called = posixpath.split(below)
        if not called or (parent := place_of(above)) is None:
            return None
        entries = fs.ls(posixpath.join(folder, parent), detail=False)
        beside = (posixpath.basename(entry.rstrip("/")) for entry in entries)
        alike = [posixpath.join(parent, each) for each in beside if one_spelling(each) == called]
        return alike[0] if alike and fs.isdir(posixpath.join(folder, alike[0])) else None

    listed: dict[str, set[str]] = defaultdict(set)
    for key in keys:
        listed[posixpath.dirname(key)].add(posixpath.basename(key))
    found, left_out = dict[str, str](), Counter[str]()
    for below, names in listed.items():
        if (place := place_of(below)) is None:
            continue
        for entry in fs.ls(posixpath.join(folder, place), detail=False):
            lies = posixpath.basename(entry.rstrip("/"))
            if (called := one_spelling(lies)) in names:
                found[posixpath.join(below, called)] = posixpath.join(place, lies)
            elif lies.lower().endswith(IMAGE_SUFFIXES) and not lies.startswith("."):
                left_out["photos that the list does not name"] += 1
    return found, left_out


def _wrong(name: str, row: Row, what: str) -> ValueError:
    return ValueError(f"list {name!r}, row {row.number}: {what}")
