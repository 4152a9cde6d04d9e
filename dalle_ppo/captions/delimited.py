"""Reads CSV and TSV: detects headers and quoting, and parses only the columns that are wanted."""

import csv
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dalle_ppo.captions.columns import CAPTION_COLUMNS, Columns, find_columns
from dalle_ppo.captions.reading import ReadSettings
from dalle_ppo.captions.shards import with_constants
from dalle_ppo.captions.suffixes import kind_of

BLOCK_BYTES = 1 << 24
"""A row must fit into a block of this size."""
_WELL_QUOTED = r'^"([^"]|"")*"$'
_DOUBLED = r'^".*"".*"$'
_IN_QUOTES = re.compile(r'"[^"]*"')
_NO_NAME = re.compile(r"https?://.*|\S+\.(jpe?g|png|webp|gif)(#\d+)?", re.IGNORECASE)


def read_delimited(
    path: Path, data: pa.Buffer, reading: ReadSettings, constants: Mapping[str, str]
) -> tuple[dict[str, pa.Array], Columns]:
    """Reads the columns of a CSV or TSV file that are wanted, and says which they are.

    Args:
        path: the file; its name says what separates columns.
        data: its contents.
        reading: the settings.
        constants: the columns that come from the path, with their values.

    Raises:
        ValueError: a column is missing, or it is unclear whether quotes hold fields together.
    """
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    quoted = _is_quoted(path, data, delimiter, reading)
    first = _first_row(data, delimiter, quoted)
    header = _has_header(first, reading) if reading.header is None else reading.header
    names = first if header else [str(number) for number in range(len(first))]
    if not header and reading.column is None:
        reading = _with_column(path, first, reading)
    columns = find_columns(str(path), names, reading, constants)
    wanted = columns.of_file
    names = None if header else names
    table = _parse(data, delimiter, quoted, names, (wanted, [columns.caption, columns.tag]))
    if quoted and reading.quoting == "auto":
        _refuse_swallowed(path, data, delimiter, table.num_rows + header)
    values = {name: table[name].combine_chunks() for name in wanted}
    for name in columns.condition:
        if name in values:
            values[name] = _blanks_as_null(values[name])
    if reading.where is not None:

        def as_text(guessed: list[str]) -> dict[str, pa.Array]:
            texts = _parse(data, delimiter, quoted, names, (guessed, guessed))
            return {name: _blanks_as_null(texts[name].combine_chunks()) for name in guessed}

        def compares(tried: dict[str, pa.Array]) -> bool:
            return _compares(path, with_constants(tried, constants, columns), columns, reading)

        pairs = zip(reading.condition.columns, columns.condition, strict=True)
        beside_text = {column for name, column in pairs if name in reading.condition.compared_with_text}
        values = _as_compared(values, beside_text, as_text, compares)
    return values, columns


def _as_compared(
    values: dict[str, pa.Array],
    beside_text: Collection[str],
    as_text: Callable[[list[str]], dict[str, pa.Array]],
    compares: Callable[[dict[str, pa.Array]], bool],
) -> dict[str, pa.Array]:
    """The columns, as text where the condition compares them with text.

    Parsed without types, the key 0012 becomes a number and 2021-01-01 a date, and neither compares with text.
    The value True does, but as `true`.

    Args:
        values: the columns; those that only the condition names are not always text.
        beside_text: the columns that stand beside a text in the condition.
        as_text: reads columns as text.
        compares: whether the condition can be computed.
    """
    guessed = [name for name, column in values.items() if not pa.types.is_string(column.type)]
    wanted = [name for name in guessed if name in beside_text]
    if not wanted and (not guessed or compares(values)):
        return values
    texts = as_text(guessed)
    # A column may also be compared with another that is text.
    for names in (wanted, [], *([*wanted, name] for name in guessed), guessed):
        tried = values | {name: texts[name] for name in names}
        if compares(tried):
            return tried
    return values  # if nothing helps, computing the condition again says why


def _compares(path: Path, values: dict[str, pa.Array], columns: Columns, reading: ReadSettings) -> bool:
    """Whether the condition can be computed from the columns."""
    try:
        reading.condition.mask(str(path), [values[name] for name in columns.condition])
    except ValueError:
        return False
    return True


def _blanks_as_null(values: pa.Array) -> pa.Array:
    """Strips text, and turns empty text into null, as in columns of numbers."""
    if not pa.types.is_string(values.type):
        return values
    values = pc.utf8_trim_whitespace(values)
    return pc.if_else(pc.equal(values, ""), None, values)


def looks_like_a_table(lines: Sequence[str]) -> str:
    """The suffix that a file should have if its lines are rows of a table; empty if they are captions."""
    for delimiter, suffix in (("\t", ".tsv"), (",", ".csv")):
        cells = [line.split(delimiter) for line in lines[:20]]
        names = {name.strip().lower() for name in cells[0]} if cells else set()
        if len(names) > 1 and names & {name.lower() for name in CAPTION_COLUMNS} and _fits(lines, delimiter):
            return suffix
        if cells and all(len(row) > 1 and _NO_NAME.fullmatch(row[0]) for row in cells):
            return suffix
    return ""


def _fits(lines: Sequence[str], delimiter: str) -> bool:
    """Whether the rows after a header have its columns; a caption that begins "text, logo" is no header."""
    counts = [_IN_QUOTES.sub("", line).count(delimiter) for line in lines[:20]]
    # One caption may hold a comma, and one of an image that is named first any number.
    return len(lines) > 1 and all(
        0 <= count - counts[0] <= 1 or (count > counts[0] and _NO_NAME.fullmatch(line.split(delimiter)[0]))
        for count, line in zip(counts[1:], lines[1:20], strict=True)
    )


def _first_row(data: pa.Buffer, delimiter: str, quoted: bool) -> list[str]:
    head = data.slice(0, min(BLOCK_BYTES, data.size)).to_pybytes().decode("utf-8-sig", errors="replace")
    rules = {"delimiter": delimiter} if quoted else {"delimiter": delimiter, "quoting": csv.QUOTE_NONE}
    return next((row for row in csv.reader(io.StringIO(head, newline=""), **rules) if row), [])


def _has_header(first: Sequence[str], reading: ReadSettings) -> bool:
    """Whether the first row holds column names.

    It does not if a cell is a web address or an image file: Conceptual Captions and Flickr8k have no header.
    """
    if reading.column is not None and reading.column.isdecimal():
        return list(first) == [str(number) for number in range(len(first))]  # pandas names columns like this
    return not any(_NO_NAME.fullmatch(cell) for cell in first)


def _with_column(path: Path, first: Sequence[str], reading: ReadSettings) -> ReadSettings:
    """Settings that name the column of captions by number: the only one without web addresses."""
    numbers = [number for number, cell in enumerate(first) if not _NO_NAME.fullmatch(cell)]
    if len(numbers) != 1:
        cells = ", ".join(f"{number}: {cell[:40]!r}" for number, cell in enumerate(first))
        raise ValueError(
            f"{path}: has no header; give the number of the column that holds the caption, such as "
            f"captions.column {max(0, len(first) - 1)}; its first row is {cells}"
        )
    return replace(reading, column=str(numbers[0]))


def _is_quoted(path: Path, data: pa.Buffer, delimiter: str, reading: ReadSettings) -> bool:
    """Whether quotes hold fields together.

    In a comma-separated file they do. In a tab-separated one they do not if every line then has the same
    number of columns and some quote that opens a field is never closed.
    """
    if reading.quoting != "auto":
        return reading.quoting == "standard"
    if delimiter == "," or not _has(data, '"'):
        return delimiter == ","
    width = len(_first_row(data, delimiter, quoted=False))
    cells = _unquoted_cells(data, delimiter, width)
    if cells is None:
        return True
    opened = pc.sum(pc.starts_with(cells, '"')).as_py() or 0
    closed = cells.filter(pc.match_substring_regex(cells, _WELL_QUOTED))
    if len(closed) == opened:
        return opened > 0
    if pc.any(pc.match_substring_regex(closed, _DOUBLED)).as_py():
        raise _doubt(path, "some fields are properly quoted and others only begin with a quote")
    return False


def _unquoted_cells(data: pa.Buffer, delimiter: str, width: int) -> pa.ChunkedArray | None:
    """All fields, read without quotes; None if the lines then have different numbers of fields."""
    try:
        table = _parse(data, delimiter, False, [f"f{n}" for n in range(width)], None)
    except pa.ArrowInvalid:
        return None
    return pa.chunked_array([chunk for column in table.columns for chunk in column.chunks], pa.string())


def _refuse_swallowed(path: Path, data: pa.Buffer, delimiter: str, num_records: int) -> None:
    """Refuses a file in which a quote that is never closed may have swallowed rows.

    A record that spans several lines is suspicious if each line on its own has all the columns.
    """
    num_lines = int((np.frombuffer(data, np.uint8) == ord("\n")).sum()) if data.size else 0
    if num_lines <= num_records or not _has(data, '"'):
        return
    lines = io.StringIO(data.to_pybytes().decode("utf-8-sig", errors="replace"), newline="").readlines()
    csv.field_size_limit(max(csv.field_size_limit(), data.size))
    reader, before, width = csv.reader(lines, delimiter=delimiter), 0, None
    for row in reader:
        width = width or len(row)
        spanned = lines[before : reader.line_num]
        before = reader.line_num
        if row and len(spanned) > 1 and all(line.count(delimiter) == width - 1 for line in spanned):
            shown = " ".join(spanned[0].split())[:60]
            raise _doubt(path, f"from {shown!r} on, a quote spans {len(spanned)} lines that look like rows")


def _has(data: pa.Buffer, character: str) -> bool:
    return data.size > 0 and bool((np.frombuffer(data, np.uint8) == ord(character)).any())


def _doubt(path: Path, why: str) -> ValueError:
    return ValueError(
        f"{path}: it is unclear whether quotes hold fields together: {why}; set captions.quoting to standard "
        "(they do) or none (they are part of the captions)"
    )


def _parse(
    data: pa.Buffer,
    delimiter: str,
    quoted: bool,
    names: list[str] | None,
    wanted: tuple[list[str], list[str | None]] | None,
) -> pa.Table:
    """Parses columns.

    Args:
        data: the file's contents.
        delimiter: what separates columns.
        quoted: whether quotes hold fields together.
        names: names of the columns if there is no header.
        wanted: names of the columns to parse, and which of them as text; None parses all, as text.
    """
    include, as_text = (None, names) if wanted is None else wanted
    return pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(column_names=names, block_size=BLOCK_BYTES),
        parse_options=pa.csv.ParseOptions(
            delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
        ),
        convert_options=pa.csv.ConvertOptions(
            include_columns=include, column_types={name: pa.string() for name in as_text if name is not None}
        ),
    )
