"""Caption files as shards that are read in chunks: parquet, CSV, TSV, JSONL and text."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from dalle_ppo.captions.tags import UNTAGGED

CHUNK_ROWS = 1 << 16
CAPTION_COLUMNS = ("TEXT", "caption", "text", "prompt", "captions", "alt_text")
TAG_COLUMNS = ("NSFW", "tag")
SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".txt")


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a shard: string arrays of equal length; the tags contain no nulls."""

    texts: pa.Array
    tags: pa.Array


class Shard(Protocol):
    """A piece of a caption set that is read by row groups, each in chunks of at most CHUNK_ROWS rows."""

    name: str

    def num_groups(self) -> int:
        """How many row groups there are; ValueError if the shard cannot be opened."""

    def may_hold(self, group: int, tag: str) -> bool:
        """False if the shard's statistics rule the tag out."""

    def chunks(self, group: int) -> Iterator[Chunk]:
        """Read one row group; ValueError names the shard if that fails."""


class TableShard:
    """Captions held in memory."""

    def __init__(self, name: str, texts: Sequence[str | None], tags: Sequence[str | None] | None = None):
        self.name = name
        tags = [None] * len(texts) if tags is None else tags
        self._chunk = Chunk(_text_array(texts), _as_tags(_text_array(tags)))

    @property
    def num_rows(self) -> int:
        return len(self._chunk.texts)

    def num_groups(self) -> int:
        return 1

    def may_hold(self, group: int, tag: str) -> bool:
        return True

    def chunks(self, group: int) -> Iterator[Chunk]:
        for start in range(0, self.num_rows, CHUNK_ROWS):
            yield Chunk(self._chunk.texts.slice(start, CHUNK_ROWS), self._chunk.tags.slice(start, CHUNK_ROWS))


class ParquetShard:
    """A parquet file of any size; only the caption and tag columns are read, a chunk at a time.

    Args:
        name: its name in messages.
        open_file: returns a seekable binary file; called again for every row group.
        caption_column, tag_column: None looks for one of CAPTION_COLUMNS, TAG_COLUMNS.
        read_errors: what reading may raise besides errors of the operating system and of pyarrow.
    """

    def __init__(
        self,
        name: str,
        open_file: Callable[[], BinaryIO],
        caption_column: str | None = None,
        tag_column: str | None = None,
        read_errors: tuple[type[Exception], ...] = (),
    ):
        self.name = name
        self._open_file = open_file
        self._wanted = (caption_column, tag_column)
        self._errors = (OSError, pa.ArrowException, *read_errors)
        self._metadata: pq.FileMetaData | None = None

    @property
    def num_rows(self) -> int:
        return self._open()[0].metadata.num_rows

    def num_groups(self) -> int:
        return self._open()[0].metadata.num_row_groups

    def may_hold(self, group: int, tag: str) -> bool:
        file, _, tag_column = self._open()
        if tag_column is None:
            return tag == UNTAGGED
        index = file.schema_arrow.get_field_index(tag_column)
        column = file.metadata.row_group(group).column(index)
        statistics = column.statistics if column.path_in_schema == tag_column else None
        if tag == UNTAGGED or statistics is None or not statistics.has_min_max:
            return True
        if not isinstance(statistics.min, str):
            return True
        return statistics.min <= tag <= statistics.max

    def chunks(self, group: int) -> Iterator[Chunk]:
        file, caption_column, tag_column = self._open()
        columns = [caption_column] if tag_column is None else [caption_column, tag_column]
        try:
            for batch in file.iter_batches(CHUNK_ROWS, row_groups=[group], columns=columns):
                texts = batch.column(caption_column).cast(pa.string())
                if tag_column is None:
                    tags = pa.nulls(len(texts), pa.string())
                else:
                    tags = batch.column(tag_column).cast(pa.string())
                yield Chunk(texts, _as_tags(tags))
        except self._errors as error:
            raise ValueError(f"{self.name}: cannot be read ({one_line(error)})") from error

    def _open(self) -> tuple[pq.ParquetFile, str, str | None]:
        try:
            # Without pre-buffering, and with a small buffer, pages are read as they are needed.
            file = pq.ParquetFile(
                self._open_file(), metadata=self._metadata, pre_buffer=False, buffer_size=1 << 20
            )
        except self._errors as error:
            raise ValueError(f"{self.name}: cannot be opened as parquet ({one_line(error)})") from error
        self._metadata = file.metadata
        caption, tag = find_columns(self.name, file.schema_arrow.names, *self._wanted)
        kind = file.schema_arrow.field(caption).type
        if not _is_text(kind):
            raise ValueError(
                f"{self.name}: column {caption!r} holds {kind}, expected text; name another column"
            )
        return file, caption, tag


def find_columns(
    name: str, columns: Sequence[str], caption_column: str | None, tag_column: str | None
) -> tuple[str, str | None]:
    """The columns of captions and of tags (None if there is none and none was asked for).

    Raises:
        ValueError: a column is missing; the message lists those that exist.
    """
    found = ", ".join(columns) or "none"
    for key, wanted in (("captions.column", caption_column), ("captions.tag_column", tag_column)):
        if wanted is not None and wanted not in columns:
            raise ValueError(f"{name}: has no column {wanted!r} ({key}); columns found: {found}")
    caption = caption_column or next((c for c in CAPTION_COLUMNS if c in columns), None)
    if caption is None:
        raise ValueError(
            f"{name}: has none of the usual caption columns ({', '.join(CAPTION_COLUMNS)}); "
            f"columns found: {found}; name one with captions.column"
        )
    return caption, tag_column or next((c for c in TAG_COLUMNS if c in columns and c != caption), None)


def open_shard(path: Path, caption_column: str | None = None, tag_column: str | None = None) -> Shard:
    """Open one local file; of files other than parquet, the caption and tag columns are held in memory.

    Raises:
        ValueError: the file cannot be read, or a column is missing.
    """
    if path.suffix.lower() == ".parquet":
        shard = ParquetShard(str(path), lambda: pa.OSFile(str(path)), caption_column, tag_column)
        shard.num_groups()  # better to find a damaged file now than after an hour
        return shard
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".txt": _read_text}
    try:
        texts, tags = readers[path.suffix.lower()](path, caption_column, tag_column)
    except (OSError, pa.ArrowException, UnicodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)})") from error
    return TableShard(str(path), texts, tags)


TextsAndTags = tuple[Sequence[str | None], Sequence[str | None] | None]


def _read_csv(path: Path, caption_column: str | None, tag_column: str | None) -> TextsAndTags:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with open(path, encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file, delimiter=delimiter), [])
    caption, tag = find_columns(str(path), header, caption_column, tag_column)
    columns = [caption] if tag is None else [caption, tag]
    table = pa.csv.read_csv(
        path,
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
        ),
    )
    return table[caption].to_pylist(), None if tag is None else table[tag].to_pylist()


def _read_jsonl(path: Path, caption_column: str | None, tag_column: str | None) -> TextsAndTags:
    texts, tags = [], []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = _json_object(path, number, line)
            if not texts:
                caption, tag = find_columns(str(path), list(row), caption_column, tag_column)
            text = row.get(caption)
            if text is not None and not isinstance(text, str):
                raise ValueError(f"{path}, line {number}: {caption!r} is {text!r}, expected text or null")
            texts.append(text)
            tags.append(None if tag is None else row.get(tag))
    return texts, tags


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: is not JSON ({error.msg})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: is not a JSON object; write one, with a caption, per line")
    return row


def _read_text(path: Path, caption_column: str | None, tag_column: str | None) -> TextsAndTags:
    if caption_column is not None or tag_column is not None:
        raise ValueError(
            f"{path}: text files have no columns; leave captions.column and captions.tag_column out"
        )
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return [line.rstrip("\n") for line in file if line.strip()], None


def _text_array(values: Sequence[Any]) -> pa.Array:
    """Strings as an arrow array; half of a surrogate pair, which JSON can contain, becomes `?`."""
    texts = [None if v is None else str(v).encode("utf8", errors="replace").decode("utf8") for v in values]
    return pa.array(texts, pa.string())


def _as_tags(values: pa.Array) -> pa.Array:
    """Missing and blank tags become UNTAGGED."""
    tags = pc.utf8_trim_whitespace(values)
    return pc.if_else(pc.fill_null(pc.equal(tags, ""), True), UNTAGGED, tags)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # A column with nothing but nulls has the type null.
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(check(kind) for check in checks)


def one_line(error: Exception) -> str:
    """An error as one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
