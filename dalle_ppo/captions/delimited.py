"""CSV and TSV: whether there is a header, whether quotes mean anything, and the columns that are wanted."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dalle_ppo.captions.columns import CAPTION_COLUMNS, Columns, find_columns
from dalle_ppo.captions.reading import ReadSettings

HEAD_BYTES = 1 << 20
_WELL_QUOTED = r'^"([^"]|"")*"$'
_DOUBLED = r'^".*"".*"$'


def read_delimited(
    path: Path, data: pa.Buffer, reading: ReadSettings, constants: Mapping[str, str]
) -> tuple[dict[str, pa.Array], Columns]:
    """The columns of a CSV or TSV file that are wanted, and which they are.

    Args:
        path: of the file; its name says what separates columns.
        data: its contents.
        reading: the settings.
        constants: columns that the path gives.

    Raises:
        ValueError: a column is missing, or it is in doubt whether quotes mean anything.
    """
    delimiter = "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ","
    quoted = _is_quoted(path, data, delimiter, reading)
    first = _first_row(data, delimiter, quoted)
    header = _has_header(first, reading) if reading.header is None else reading.header
    names = first if header else [str(number) for number in range(len(first))]
    if not header and reading.column is None:
        columns = find_columns(str(path), [*names, *constants], _with_column(path, first, reading))
    else:
        columns = find_columns(str(path), [*names, *constants], reading)
    wanted = columns.names(constants)
    table = _parse(data, delimiter, quoted, None if header else names, wanted, columns)
    values = {name: table[name].combine_chunks() for name in wanted}
    if quoted and reading.quoting == "auto" and delimiter == "," and len(first) > 1:
        _refuse_swallowed(path, values[columns.caption], data, len(first))
    return values, columns


def _first_row(data: pa.Buffer, delimiter: str, quoted: bool) -> list[str]:
    head = data.slice(0, min(HEAD_BYTES, data.size)).to_pybytes().decode("utf-8-sig", errors="replace")
    rules = {"delimiter": delimiter} if quoted else {"delimiter": delimiter, "quoting": csv.QUOTE_NONE}
    return next(csv.reader(io.StringIO(head, newline=""), **rules), [])


def _has_header(first: Sequence[str], reading: ReadSettings) -> bool:
    """Whether the first row holds names: one that is wanted, a usual one, or at least no web address.

    Conceptual Captions has no header: its first row is a caption and an address.
    """
    if reading.column is not None and reading.column.isdecimal():
        return list(first) == [str(number) for number in range(len(first))]  # pandas names columns so
    known = {reading.column.split(".")[0].lower()} if reading.column else {n.lower() for n in CAPTION_COLUMNS}
    return any(name.lower() in known for name in first) or not any(_is_address(cell) for cell in first)


def _is_address(cell: str) -> bool:
    return cell.lower().startswith(("http://", "https://"))


def _with_column(path: Path, first: Sequence[str], reading: ReadSettings) -> ReadSettings:
    """Settings that name the column of captions by its number: the only one that holds no addresses."""
    from dataclasses import replace

    numbers = [number for number, cell in enumerate(first) if not _is_address(cell)]
    if len(numbers) != 1:
        cells = ", ".join(f"{number}: {cell[:40]!r}" for number, cell in enumerate(first))
        raise ValueError(
            f"{path}: has no header; give the number of the column that holds the caption, such as "
            f"captions.column {len(first) - 1}; its first row is {cells}"
        )
    return replace(reading, column=str(numbers[0]))


def _is_quoted(path: Path, data: pa.Buffer, delimiter: str, reading: ReadSettings) -> bool:
    """Whether quotes hold fields together.

    In a comma-separated file they do. A tab-separated one is read without quotes where that gives every line
    the same number of columns and not every quote that opens a field is closed as the rule wants it.
    """
    if reading.quoting != "auto":
        return reading.quoting == "standard"
    if delimiter == "," or not (np.frombuffer(data, np.uint8) == ord('"')).any():
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
        raise _doubt(path, "some fields are quoted by the rules and others only begin with a quote")
    return False


def _unquoted_cells(data: pa.Buffer, delimiter: str, width: int) -> pa.ChunkedArray | None:
    """All fields, read without quotes; None if lines then have different numbers of them."""
    try:
        table = _parse(data, delimiter, False, [f"f{n}" for n in range(width)], None, None)
    except pa.ArrowInvalid:
        return None
    return pa.chunked_array([chunk for column in table.columns for chunk in column.chunks], pa.string())


def _refuse_swallowed(path: Path, captions: pa.Array, data: pa.Buffer, width: int) -> None:
    """Refuses a file in which a quote may have swallowed rows.

    A caption with a line break is suspicious if without quotes, too, all lines have equally many columns.
    """
    broken = pc.any(pc.match_substring(captions, "\n")).as_py()
    if broken and _unquoted_cells(data, ",", width) is not None:
        raise _doubt(path, "a quoted field spans lines, and without quotes every line has its columns, too")


def _doubt(path: Path, why: str) -> ValueError:
    return ValueError(
        f"{path}: it is in doubt whether quotes mean anything: {why}; give captions.quoting standard (quotes "
        "hold fields together) or none (quotes are part of the captions)"
    )


def _parse(
    data: pa.Buffer,
    delimiter: str,
    quoted: bool,
    names: list[str] | None,
    wanted: list[str] | None,
    columns: Columns | None,
) -> pa.Table:
    """Some columns as text, those of a condition as what they look like; `names` if there is no header."""
    as_text = names if wanted is None else [columns.caption, columns.tag]
    return pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(column_names=names),
        parse_options=pa.csv.ParseOptions(
            delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
        ),
        convert_options=pa.csv.ConvertOptions(
            include_columns=wanted, column_types={name: pa.string() for name in as_text if name is not None}
        ),
    )
