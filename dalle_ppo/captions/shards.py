"""Pieces of a caption set, read in chunks: from memory, or from a parquet file of any size."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dalle_ppo.base.one_line import one_line
from dalle_ppo.captions.columns import Chunk, Columns, check_caption_type, find_columns, make_chunk
from dalle_ppo.captions.reading import USUAL, ReadSettings, spelled
from dalle_ppo.captions.tags import UNTAGGED

CHUNK_ROWS = 1 << 16
NO_CONSTANTS: Mapping[str, str] = MappingProxyType({})


class Shard(Protocol):
    """A piece of a caption set, read one row group at a time in chunks of at most CHUNK_ROWS rows."""

    name: str
    columns: Columns | None
    """Which columns are read; None if there are none, or before the file has been opened."""

    @property
    def num_rows(self) -> int:
        """How many rows there are; ValueError if the shard cannot be opened."""

    def num_groups(self) -> int:
        """How many row groups there are; ValueError if the shard cannot be opened."""

    def may_hold(self, group: int, tag: str) -> bool:
        """False if the shard's statistics rule the tag out."""

    def chunks(self, group: int) -> Iterator[Chunk]:
        """Read one row group; ValueError names the shard if that fails."""


class TableShard:
    """Captions held in memory."""

    stands_for: str | None = None
    """The damaged file of which this one is a copy; a saved position names it instead."""

    def __init__(self, name: str, texts: Sequence[str | None], tags: Sequence[str | None] | None = None):
        self.name, self.columns = name, None
        tags = [None] * len(texts) if tags is None else tags
        self._chunk = Chunk(_text_array(texts), _text_array([spelled(tag) for tag in tags]))

    @classmethod
    def of_chunk(cls, name: str, chunk: Chunk, columns: Columns | None = None) -> "TableShard":
        """A shard that holds what was read from a file."""
        shard = cls(name, [])
        shard._chunk, shard.columns = chunk, columns
        return shard

    @property
    def num_rows(self) -> int:
        return len(self._chunk.texts)

    def num_groups(self) -> int:
        return 1

    def may_hold(self, group: int, tag: str) -> bool:
        return True

    def chunks(self, group: int) -> Iterator[Chunk]:
        for start in range(0, self.num_rows, CHUNK_ROWS):
            yield self.rows(start, CHUNK_ROWS)

    def rows(self, start: int, count: int) -> Chunk:
        """At most `count` rows from `start` on."""
        return Chunk(self._chunk.texts.slice(start, count), self._chunk.tags.slice(start, count))


class UnreadableShard:
    """A file that could not be opened; it keeps its place among the others, and reading it fails.

    Args:
        name: the file.
        error: what a ValueError says when the shard is read.
    """

    num_rows = 0

    def __init__(self, name: str, error: str):
        self.name, self.columns, self._error = name, None, error

    def num_groups(self) -> int:
        raise ValueError(self._error)

    def may_hold(self, group: int, tag: str) -> bool:
        raise ValueError(self._error)

    def chunks(self, group: int) -> Iterator[Chunk]:
        raise ValueError(self._error)


class ParquetShard:
    """A parquet file; only the columns that are needed are read, a chunk at a time.

    Args:
        name: what messages call it.
        open_file: returns a seekable binary file; called again for every row group.
        reading: which columns and rows are wanted.
        constants: columns that come from the file's path, with their values.
        read_errors: errors that reading may raise besides those of the operating system and of pyarrow.
    """

    def __init__(
        self,
        name: str,
        open_file: Callable[[], BinaryIO],
        reading: ReadSettings = USUAL,
        constants: Mapping[str, str] = NO_CONSTANTS,
        read_errors: tuple[type[Exception], ...] = (),
    ):
        self.name, self.columns = name, None
        self._open_file, self._reading, self._constants = open_file, reading, constants
        # A damaged name of a column is a UnicodeDecodeError, a damaged value may be one.
        self._errors = (OSError, pa.ArrowException, UnicodeError, *read_errors)
        self._metadata: pq.FileMetaData | None = None

    @property
    def num_rows(self) -> int:
        return self._open().metadata.num_rows

    def num_groups(self) -> int:
        return self._open().metadata.num_row_groups

    def may_hold(self, group: int, tag: str) -> bool:
        file = self._open()
        if self.columns.tag is None:
            return tag == self._reading.untagged
        if self._reading.tag_map or self._reading.tag_thresholds or tag == UNTAGGED:
            return True
        if self.columns.tag in self.columns.of_path:
            return spelled(self._constants[self.columns.tag]) == tag
        index = file.schema_arrow.get_field_index(self.columns.tag)
        column = file.metadata.row_group(group).column(index) if index >= 0 else None
        if column is None or column.path_in_schema != self.columns.tag:
            return True
        return _within_statistics(column.statistics, tag)

    def chunks(self, group: int) -> Iterator[Chunk]:
        file = self._open()
        names = self.columns.of_file
        try:
            for batch in file.iter_batches(CHUNK_ROWS, row_groups=[group], columns=names):
                values = {name: _at(batch, name) for name in names}
                values |= _repeated(self._constants, self.columns, len(batch))
                yield make_chunk(self.name, values, self.columns, self._reading)
        except self._errors as error:
            raise ValueError(f"{self.name}: cannot be read ({one_line(error)})") from error

    def _open(self) -> pq.ParquetFile:
        try:
            # Without pre-buffering, and with a small buffer, pages are read as they are needed.
            file = pq.ParquetFile(
                self._open_file(), metadata=self._metadata, pre_buffer=False, buffer_size=1 << 20
            )
        except self._errors as error:
            raise ValueError(f"{self.name}: cannot be opened as parquet ({one_line(error)})") from error
        self._metadata = file.metadata
        if self.columns is None:
            schema = file.schema_arrow
            try:
                names = schema.names
            except UnicodeError as error:
                raise ValueError(f"{self.name}: cannot be opened as parquet ({one_line(error)})") from error
            columns = find_columns(self.name, names, self._reading, self._constants)
            for name in columns.of_file:
                kind = _type_at(self.name, schema, name)
                if name == columns.caption:
                    check_caption_type(self.name, name, kind)
            self.columns = columns
        return file


def with_constants(
    values: dict[str, pa.Array], constants: Mapping[str, str], columns: Columns
) -> dict[str, pa.Array]:
    """The columns of a file together with those that come from its path."""
    num_rows = len(values[columns.caption])
    return values | _repeated(constants, columns, num_rows)


def _repeated(constants: Mapping[str, str], columns: Columns, num_rows: int) -> dict[str, pa.Array]:
    return {name: pa.repeat(pa.scalar(constants[name], pa.string()), num_rows) for name in columns.of_path}


def _at(batch: pa.RecordBatch, path: str) -> pa.Array:
    """A column; a dot reaches into a struct."""
    if path in batch.schema.names:
        return batch.column(path)
    root, *fields = path.split(".")
    return pc.struct_field(batch.column(root), fields)


def _type_at(name: str, schema: pa.Schema, path: str) -> pa.DataType:
    if path in schema.names:
        return schema.field(path).type
    kind = schema.field(path.split(".")[0]).type
    for part in path.split(".")[1:]:
        index = kind.get_field_index(part) if pa.types.is_struct(kind) else -1
        if index < 0:
            raise ValueError(f"{name}: there is no {path!r}; {part!r} is not a field of {kind}")
        kind = kind.field(index).type
    return kind


def _within_statistics(statistics: Any, tag: str) -> bool:
    """Whether a tag can lie between the smallest and the largest value of a row group.

    The statistics hold values as the file spells them. So nothing is ruled out if a bound has blanks around
    it, or if the tag has several spellings.
    """
    if statistics is None or not statistics.has_min_max or not isinstance(statistics.min, str):
        return True
    low, high = statistics.min, statistics.max
    if (low.strip(), high.strip()) != (low, high) or tag in ("true", "false") or tag.lstrip("+-").isdecimal():
        return True
    return low <= tag <= high


def _text_array(values: Sequence[Any]) -> pa.Array:
    """Strings as an arrow array; a lone surrogate, which JSON can spell, becomes `?`."""
    texts = [None if v is None else str(v).encode("utf8", errors="replace").decode("utf8") for v in values]
    return pa.array(texts, pa.string())
