"""Opens one caption file of any supported format."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from dalle_ppo.base.one_line import one_line
from dalle_ppo.captions.columns import SCORE_COLUMNS, TAG_COLUMNS, Columns, make_chunk
from dalle_ppo.captions.delimited import looks_like_a_table, read_delimited
from dalle_ppo.captions.json_files import read_json
from dalle_ppo.captions.reading import ReadSettings
from dalle_ppo.captions.shards import ParquetShard, Shard, TableShard, with_constants
from dalle_ppo.captions.suffixes import kind_of

MAX_UNPACKED, MAX_RATIO = 32 << 20, 50
"""A compressed file may unpack to this many bytes, or to this many times its size."""
FREE_ROWS, ROWS_PER_BYTE = 1 << 20, 8
_DECOMPRESSORS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
_MAGIC = {
    b"\x1f\x8b": "is compressed by gzip; its name must end in .gz",
    b"\xff\xfe": "is UTF-16; convert it to UTF-8",
    b"\xfe\xff": "is UTF-16; convert it to UTF-8",
    b"PAR1": "is parquet; its name must end in .parquet",
}


def open_shard(path: Path, reading: ReadSettings, root: Path | None = None) -> Shard:
    """Open one local file; the captions and tags of any format but parquet are held in memory.

    Args:
        path: the file.
        reading: which columns and rows are wanted.
        root: the folder in which it was found; folders below it may stand for columns.

    Raises:
        ValueError: the file cannot be read, or a column is missing.
    """
    constants = partitions(path, root)
    if kind_of(path) == ".parquet":
        shard = ParquetShard(str(path), lambda: pa.OSFile(str(path)), reading, constants)
        shard.num_groups()  # better to find a damaged file now than after an hour
        _check_rows(path, shard.num_rows)
        return shard
    readers = {".csv": read_delimited, ".tsv": read_delimited, ".txt": _read_text}
    try:
        values, columns = readers.get(kind_of(path), read_json)(path, read_buffer(path), reading, constants)
        values = with_constants(values, constants, columns)
        return TableShard.of_chunk(str(path), make_chunk(str(path), values, columns, reading), columns)
    except (OSError, pa.ArrowException, UnicodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)})") from error


def _check_rows(path: Path, rows: int) -> None:
    """Refuses a file of a few bytes that claims so many rows that reading them never ends."""
    limit = FREE_ROWS + ROWS_PER_BYTE * path.stat().st_size
    if rows > limit:
        raise ValueError(
            f"{path}: claims {rows} rows in {path.stat().st_size} bytes, at most {limit} are read; write it "
            "anew with the rows that hold captions"
        )


def partitions(path: Path, root: Path | None) -> dict[str, str | None]:
    """Columns that come from the folders of a path, in Hive's layout: `NSFW=UNSURE/part-0.parquet`.

    Args:
        path: the file.
        root: only folders below it count; None counts all.
    """
    folders = path.relative_to(root).parts[:-1] if root else path.parts[:-1]
    pairs = [folder.split("=", 1) for folder in folders if "=" in folder]
    missing = "__HIVE_DEFAULT_PARTITION__"
    return {unquote(name): None if value == missing else unquote(value) for name, value in pairs}


def read_buffer(path: Path) -> pa.Buffer:
    """The contents of a file, decompressed if its name says so.

    Raises:
        ValueError: its first bytes show that its name has the wrong suffix, or that it is UTF-16.
        OSError: it cannot be read.
    """
    if path.suffix.lower() in _DECOMPRESSORS:
        with pa.input_stream(str(path), compression=_DECOMPRESSORS[path.suffix.lower()]) as stream:
            return _read_bounded(path, stream)
    with pa.OSFile(str(path)) as file:
        data = file.read_buffer()
    head = data.slice(0, min(4, data.size)).to_pybytes()
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise ValueError(f"{path}: {what}")
    return data


def _read_bounded(path: Path, stream: pa.NativeFile) -> pa.Buffer:
    """All of a decompressed file, but for one that is made to fill the memory.

    Raises:
        ValueError: it unpacks to far more than captions do, which compress to a third or, repeated, a tenth.
    """
    limit = max(MAX_UNPACKED, MAX_RATIO * path.stat().st_size)
    parts, total = [], 0
    while part := stream.read(1 << 22):
        parts.append(part)
        total += len(part)
        if total > limit:
            raise ValueError(
                f"{path}: unpacks to more than {limit} bytes; unpack it yourself if that is right"
            )
    return pa.py_buffer(b"".join(parts))


def _read_text(
    path: Path, data: pa.Buffer, reading: ReadSettings, constants: Mapping[str, str | None]
) -> tuple[dict[str, pa.Array], Columns]:
    """Reads one caption per line; only the path can hold a tag."""
    if reading.column or reading.where:
        raise ValueError(f"{path}: text files have no columns; leave captions.column and captions.where out")
    text = data.to_pybytes().decode("utf-8-sig", errors="replace")
    lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    suffix = looks_like_a_table(lines)
    if suffix:
        raise ValueError(
            f"{path}: looks like a table with columns, not like captions; rename it to end in {suffix}"
        )
    usual = SCORE_COLUMNS if reading.tag_thresholds else TAG_COLUMNS
    wanted = [reading.tag_column] if reading.tag_column else usual if reading.tag_column is None else []
    lower = {name.lower(): name for name in constants}
    tag = next((lower[name.lower()] for name in wanted if name.lower() in lower), None)
    if reading.tag_column and tag is None:
        raise ValueError(f"{path}: text files have no columns; leave captions.tag_column out")
    if reading.tag_thresholds and tag is None:
        raise ValueError(f"{path}: text files have no columns; leave captions.tag_thresholds out")
    return {"text": pa.array(lines, pa.string())}, Columns("text", tag, of_path=frozenset({tag} - {None}))
