"""Reads JSON and JSON Lines: one object per caption, a list of objects or captions, or COCO's annotations."""

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from dalle_ppo.captions.columns import (
    CAPTION_COLUMNS,
    SCORE_COLUMNS,
    TAG_COLUMNS,
    Columns,
    NoCaptionColumn,
    find_columns,
)
from dalle_ppo.captions.reading import ReadSettings, shown, spelled

ROWS_AT_ONCE = 256
"""Few enough to stay in the processor's cache."""

LONG_NUMBER = "holds a whole number with more digits than Python reads; shorten it, or write it as text"

Rows = Iterable[tuple[int, dict[str, Any]]]
"""The number of each row, from 1, and its object."""


def read_json(
    path: Path, data: pa.Buffer, reading: ReadSettings, constants: Mapping[str, str]
) -> tuple[dict[str, pa.Array], Columns]:
    """Reads the columns of a JSON file that are wanted, and says which they are; any row may lack a key.

    Args:
        path: the file.
        data: its contents.
        reading: the settings.
        constants: columns that come from the path.

    Raises:
        ValueError: the file does not hold rows as JSON, or a column is missing.
    """
    text = data.to_pybytes().decode("utf-8-sig")
    whole = ".json" in (suffix.lower() for suffix in path.suffixes)
    unit, rows = _rows_of_document(path, text) if whole else ("line", _rows_of_lines(path, text))
    numbers, known, kept = _collect(rows, _names_to_keep(reading))
    if not numbers:
        return {"text": pa.nulls(0, pa.string())}, Columns("text")
    columns = find_columns(str(path), known, reading, constants)
    values = {}
    for name in columns.of_file:
        found = kept.get(name)
        if found is None:
            found = _inside(kept[name.split(".")[0]], name)
            if all(value is None for value in found):
                raise ValueError(f"{path}: no row has {name!r}; name another column")
        places = (f"{path}, {unit} {number}" for number in numbers)
        if name == columns.caption:
            values[name] = _captions(name, found, places)
        elif name == columns.tag:
            values[name] = _tags(name, found, places)
        else:
            values[name] = _comparable(path, name, found)
    return values, columns


def _rows_of_lines(path: Path, text: str) -> Rows:
    decode = json.JSONDecoder().decode
    for number, line in enumerate(text.split("\n"), 1):
        if line and not line.isspace():
            try:
                row = decode(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: is not JSON ({error.msg})") from None
            except RecursionError:
                raise ValueError(f"{path}, line {number}: is nested too deeply") from None
            except ValueError:
                raise ValueError(f"{path}, line {number}: {LONG_NUMBER}") from None
            if not isinstance(row, dict):
                raise _no_object(f"{path}, line {number}")
            yield number, row


def _rows_of_document(path: Path, text: str) -> tuple[str, Rows]:
    """Whether rows are numbered by line or by row, and the rows."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply") from None
    except json.JSONDecodeError:
        return "line", _rows_of_lines(path, text)  # many people write JSON Lines into .json files
    except ValueError:
        raise ValueError(f"{path}: {LONG_NUMBER}") from None
    if isinstance(document, dict):
        document = document.get("annotations", [document])  # COCO keeps one object per caption here
    if not isinstance(document, list):
        raise NoCaptionColumn(f"{path}: is not a list of objects; write one object per caption")
    if document and not any(isinstance(row, str | dict) for row in document):
        raise NoCaptionColumn(f"{path}, row 1: is not a JSON object; write one object per caption")
    rows = [{"text": row} if isinstance(row, str) else row for row in document]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise _no_object(f"{path}, row {number}")
    return "row", enumerate(rows, 1)


def _no_object(place: str) -> ValueError:
    return ValueError(f"{place}: is not a JSON object; write one object per caption")


def _names_to_keep(reading: ReadSettings) -> frozenset[str]:
    """The keys whose values may be needed, in lower case."""
    named = [reading.column, reading.tag_column]
    named += reading.condition.columns if reading.where is not None else ()
    wanted = [part for name in named if name for part in (name, name.split(".")[0])]
    return frozenset(n.lower() for n in (*CAPTION_COLUMNS, *TAG_COLUMNS, *SCORE_COLUMNS, *wanted))


def _collect(rows: Rows, to_keep: frozenset[str]) -> tuple[list[int], list[str], dict[str, list[Any]]]:
    """Row numbers, all keys in order of first appearance, and the values of the keys in `to_keep`."""
    numbers: list[int] = []
    known: dict[str, None] = {}
    kept: dict[str, list[Any]] = {}
    rows = iter(rows)
    while chunk := list(islice(rows, ROWS_AT_ONCE)):
        if not set().union(*(row for _, row in chunk)) <= known.keys():
            known |= dict.fromkeys(key for _, row in chunk for key in row)
        for key in known:
            if key not in kept and key.lower() in to_keep:
                kept[key] = [None] * len(numbers)
        for key, values in kept.items():
            values += [row.get(key) for _, row in chunk]
        numbers += [number for number, _ in chunk]
    return numbers, list(known), kept


def _inside(values: list[Any], path: str) -> list[Any]:
    """The values at a dotted path, given the values of its first part."""
    for part in path.split(".")[1:]:
        values = [value.get(part) if isinstance(value, dict) else None for value in values]
    return values


def _captions(name: str, values: list[Any], places: Iterable[str]) -> pa.Array:
    """Captions; a lone surrogate, which JSON can spell, becomes `?`."""
    plain = _plain_text(values)
    if plain is not None:
        return plain
    has_lists = any(isinstance(value, list) for value in values)
    texts = []
    for value, place in zip(values, places, strict=True):
        captions = value if isinstance(value, list) else [value]
        if not all(caption is None or isinstance(caption, str) for caption in captions):
            raise ValueError(f"{place}: {name!r} is {shown(value)}, expected text, a list of texts or null")
        captions = [None if c is None else c.encode("utf8", "replace").decode("utf8") for c in captions]
        texts.append(captions if has_lists else captions[0])
    return pa.array(texts, pa.list_(pa.string()) if has_lists else pa.string())


def _plain_text(values: list[Any]) -> pa.Array | None:
    """The fast way, if every value is null or text without lone surrogates; otherwise None."""
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowException, UnicodeError):
        return None


def _tags(name: str, values: list[Any], places: Iterable[str]) -> pa.Array:
    plain = _plain_text(values)
    if plain is not None:
        return plain
    for value, place in zip(values, places, strict=True):
        if isinstance(value, list | dict):
            raise ValueError(
                f"{place}: {name!r} is {shown(value)}, expected a tag; name another captions.tag_column"
            )
    if all(value is None or isinstance(value, int | float) for value in values) and not any(
        isinstance(value, bool) for value in values
    ):
        return pa.array(values, pa.float64())
    return pa.array([spelled(v).encode("utf8", "replace").decode("utf8") for v in values], pa.string())


def _comparable(path: Path, name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        raise ValueError(
            f"{path}: {name!r}, which captions.where names, holds values of several types; use one type"
        ) from None
