"""Finds the columns of captions and tags in a table, and turns their values into captions and tags."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dalle_ppo.captions.reading import ReadSettings, make_tags, shown_names

CAPTION_COLUMNS = ("TEXT", "caption", "text", "prompt", "captions", "alt_text")
TAG_COLUMNS = ("NSFW", "tag")
SCORE_COLUMNS = ("punsafe",)


@dataclass(frozen=True)
class Columns:
    """The columns of a file that are read.

    Args:
        caption: the column of captions.
        tag: the column of tags, or of scores that become tags; None if there is none.
        condition: the columns that `captions.where` names, in its order.
        of_path: those of the above that come from the file's path.
    """

    caption: str
    tag: str | None = None
    condition: tuple[str, ...] = ()
    of_path: frozenset[str] = frozenset()

    @property
    def of_file(self) -> list[str]:
        """The columns in the file itself, each once."""
        wanted = (self.caption, self.tag, *self.condition)
        return [name for name in dict.fromkeys(wanted) if name is not None and name not in self.of_path]


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a shard.

    Args:
        texts: captions; lists of captions where each row has several, of which one is drawn.
        tags: one for each row, without nulls.
    """

    texts: pa.Array
    tags: pa.Array

    def drawn(self, key: Sequence[int]) -> "Chunk":
        """The chunk with one caption per row; `key` decides which one of a list."""
        if not pa.types.is_list(self.texts.type):
            return self
        lengths = pc.fill_null(pc.list_value_length(self.texts), 0).to_numpy(zero_copy_only=False)
        picks = (np.random.default_rng(list(key)).random(len(lengths)) * lengths).astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(lengths) else lengths
        places = pa.array(starts + picks, mask=lengths == 0)
        return Chunk(pc.list_flatten(self.texts).take(places), self.tags)


class NoCaptionColumn(ValueError):
    """Raised if a file is a table without a column of captions, or no table at all, and not damaged."""


def find_columns(
    name: str, columns: Sequence[str], reading: ReadSettings, constants: Collection[str] = ()
) -> Columns:
    """The columns of captions, of tags and of the condition.

    Case does not matter, but an exact match comes first. `meta.caption` is the field `caption` of the column
    `meta`.

    Args:
        name: what messages call the file.
        columns: names of the file's columns, in order.
        reading: which ones are wanted.
        constants: names of columns that come from the file's path; the file's own come first.

    Raises:
        ValueError: a column is missing, or appears twice; the message lists the columns found.
    """
    found = shown_names(columns)
    caption = _wanted(name, columns, "captions.column", reading.column) or _usual(columns, CAPTION_COLUMNS)
    if caption is None:
        hint = "; only commas (.csv) and tabs (.tsv) separate columns" if re.search(r"[;|]", found) else ""
        raise NoCaptionColumn(
            f"{name}: has none of the usual caption columns ({', '.join(CAPTION_COLUMNS)}); "
            f"columns found: {found}; name one with captions.column, or set captions.header to false{hint}"
        )
    every = [*columns, *(c for c in constants if c not in columns)]
    tag = None
    if reading.tag_column != "":
        usual = SCORE_COLUMNS if reading.tag_thresholds else TAG_COLUMNS
        tag = _wanted(name, every, "captions.tag_column", reading.tag_column)
        tag = tag or _usual([c for c in every if c != caption], usual)
    if reading.tag_thresholds and tag is None:
        raise ValueError(
            f"{name}: captions.tag_thresholds needs a column of scores; name it with captions.tag_column; "
            f"columns found: {shown_names(every)}"
        )
    condition = ()
    if reading.where is not None:
        condition = tuple(_wanted(name, every, "captions.where", c) for c in reading.condition.columns)
    for chosen in (caption, tag, *condition):
        if list(columns).count(chosen) > 1:
            raise ValueError(
                f"{name}: has {list(columns).count(chosen)} columns called {chosen!r}; rename all but one"
            )
    return Columns(caption, tag, condition, frozenset({tag, *condition} & set(constants) - set(columns)))


def make_chunk(name: str, values: Mapping[str, pa.Array], columns: Columns, reading: ReadSettings) -> Chunk:
    """Makes captions and tags from the values of columns.

    Args:
        name: what messages call the file.
        values: the columns by name, all of equal length.
        columns: which one is used for what.
        reading: the settings.

    Raises:
        ValueError: a column holds values of the wrong type.
    """
    texts = _texts(name, columns.caption, values[columns.caption])
    if columns.tag is None:
        tags = pa.repeat(reading.untagged, len(texts))
    else:
        tags = make_tags(name, columns.tag, values[columns.tag], reading)
    if reading.where is not None:
        mask = reading.condition.mask(name, [values[column] for column in columns.condition])
        texts, tags = texts.filter(mask), tags.filter(mask)
    if pa.types.is_list(texts.type) and reading.lists == "all":
        tags = tags.take(pc.list_parent_indices(texts))
        texts = pc.list_flatten(texts)
    return Chunk(texts, tags)


def check_caption_type(name: str, column: str, kind: pa.DataType) -> None:
    """Raises ValueError unless captions can be read from a column of this type."""
    inner = kind.value_type if pa.types.is_dictionary(kind) or _is_list(kind) else kind
    if not (_is_text(inner) or _is_binary(inner)):
        raise ValueError(f"{name}: column {column!r} holds {kind}, expected text; name another column")


def _wanted(name: str, columns: Sequence[str], key: str, wanted: str | None) -> str | None:
    """The column that a setting names; None if it names none."""
    if not wanted:
        return None
    column = _usual(columns, (wanted,))
    root, dot, rest = wanted.partition(".")
    if column is None and dot and _usual(columns, (root,)):
        return f"{_usual(columns, (root,))}.{rest}"
    if column is None:
        found = shown_names(columns)
        raise ValueError(f"{name}: has no column {wanted!r} ({key}); columns found: {found}")
    return column


def _usual(columns: Sequence[str], usual: Sequence[str]) -> str | None:
    """The first of the usual names that exists: an exact match first, else one in any case."""
    exact = next((name for name in usual if name in columns), None)
    if exact is not None:
        return exact
    lower = [name.lower() for name in usual]
    found = [column for column in columns if column.strip().lower() in lower]
    return min(found, key=lambda column: lower.index(column.strip().lower()), default=None)


def _texts(name: str, column: str, values: pa.Array) -> pa.Array:
    """Captions as strings, or as lists of strings."""
    kind = values.type
    check_caption_type(name, column, kind)
    if _is_list(kind):
        values = values.cast(pa.list_(kind.value_type))
        inner = _texts(name, column, values.values)
        return pa.ListArray.from_arrays(values.offsets, inner)  # a null becomes an empty list
    if _is_binary(kind):
        # Viewed as text without a check: invalid UTF-8 becomes the replacement character when it is drawn.
        plain = values.cast(pa.binary()) if kind != pa.binary() else values
        return plain.view(pa.string())
    return values.cast(pa.string())


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_binary(kind: pa.DataType) -> bool:
    checks = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(check(kind) for check in checks)


def _is_text(kind: pa.DataType) -> bool:
    # A column of nothing but nulls has the type null.
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(check(kind) for check in checks)
