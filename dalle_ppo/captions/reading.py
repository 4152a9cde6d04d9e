"""How captions are read from files: which columns, which rows, and what a tag is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dalle_ppo.captions.tags import UNTAGGED

_INTEGER = re.compile(r"([+-]?\d+)\.0+")


@dataclass(frozen=True)
class ReadSettings:
    """The `captions.*` settings that concern files; None everywhere reads the usual names.

    Args:
        column, tag_column: names of columns; a dot reaches into a struct. An empty tag column reads no tags.
        header: whether delimited files begin with a line of names; None recognises it.
        quoting: whether quotes in delimited files hold fields together; "auto" looks.
        lists: of a list of captions in one row, all, or one drawn anew in each pass.
        tag_map: what to call a tag, by the name that it has in the file.
        tag_thresholds: the tags of a column of scores, each from its threshold on.
        where: rows to read, as an SQL condition on the columns.

    Raises:
        ValueError: `where` is no condition, or there are thresholds and a map.
    """

    column: str | None = None
    tag_column: str | None = None
    header: bool | None = None
    quoting: Literal["auto", "none", "standard"] = "auto"
    lists: Literal["all", "one"] = "all"
    tag_map: Mapping[str, str] | None = None
    tag_thresholds: Mapping[str, float] | None = None
    where: str | None = None

    def __post_init__(self) -> None:
        if self.tag_map and self.tag_thresholds:
            raise ValueError("captions.tag_map and captions.tag_thresholds exclude each other; give one")
        if self.where is not None:
            self.condition  # noqa: B018  parsed now, so that a mistake is found before any file is opened

    @cached_property
    def condition(self) -> "Condition":
        """`where`, parsed."""
        return Condition(self.where)


USUAL = ReadSettings()
"""The usual column names, and every row."""


USUAL = ReadSettings()
"""The usual column names, and every row."""


class Condition:
    """A condition on the columns of a table, such as `punsafe < 0.5 and width >= 256`.

    Args:
        text: SQL, as Polars reads it.

    Raises:
        ValueError: it cannot be parsed.
    """

    def __init__(self, text: str):
        import polars

        self.text = text
        try:
            self._expression = polars.sql_expr(text)
            self.columns = tuple(dict.fromkeys(self._expression.meta.root_names()))
        except Exception as error:
            raise ValueError(
                f"captions.where is {text!r}, which is no condition ({error}); write one such as "
                '"punsafe < 0.5 and width >= 256"'
            ) from None
        if not self.columns:
            raise ValueError(f"captions.where is {text!r}; it must name a column")

    def mask(self, name: str, columns: list[pa.Array]) -> pa.Array:
        """Which rows fulfil the condition; a null does not.

        Args:
            name: what messages call the file.
            columns: the values of `self.columns`.

        Raises:
            ValueError: the columns cannot be compared so.
        """
        import polars

        frame = polars.DataFrame(
            {c: polars.from_arrow(v) for c, v in zip(self.columns, columns, strict=True)}
        )
        try:
            mask = frame.select(self._expression.alias("mask"))["mask"]
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{name}: captions.where is {self.text!r}: {reason}") from None
        if mask.dtype != polars.Boolean or len(mask) != len(frame):
            raise ValueError(
                f"captions.where is {self.text!r}; it must be true or false for each row, such as "
                '"punsafe < 0.5 and width >= 256"'
            )
        return mask.fill_null(False).to_arrow()


def spelled(value: object) -> str:
    """One spelling of a tag, whatever kind of file it comes from.

    `True` of JSON, `true` of parquet and `TRUE` of a spreadsheet are `true`; `1` and `1.0` are `1`; nothing,
    blanks and NaN are UNTAGGED.
    """
    if value is None or value != value:
        return UNTAGGED
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    whole = _INTEGER.fullmatch(text)
    return whole[1] if whole else text or UNTAGGED


def make_tags(name: str, column: str, values: pa.Array, reading: ReadSettings) -> pa.Array:
    """The tags in a column: one spelling, then the map or the thresholds.

    Args:
        name, column: what messages call them.
        values: text, truth values or numbers.
        reading: of which the map and the thresholds matter.

    Returns:
        Strings without nulls.

    Raises:
        ValueError: the column holds scores and there are no thresholds, or thresholds and no scores.
    """
    if reading.tag_thresholds:
        return _by_threshold(name, column, values, reading.tag_thresholds)
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    _refuse_scores(name, column, distinct)
    tags = [spelled(value) for value in distinct]
    if reading.tag_map:
        tags = [reading.tag_map.get(tag, tag) for tag in tags]
    missing = (reading.tag_map or {}).get(UNTAGGED, UNTAGGED)
    return pc.fill_null(pa.array(tags, pa.string()).take(encoded.indices), missing)


def is_score(value: object) -> bool:
    """Whether a tag is a number that is not whole."""
    try:
        number = float(value) if isinstance(value, str | float) else 0.0
    except ValueError:
        return False
    return np.isfinite(number) and number != int(number)


def _refuse_scores(name: str, column: str, distinct: list) -> None:
    scores = [value for value in distinct if is_score(value)]
    if scores and 2 * len(scores) >= len(distinct):
        raise ValueError(
            f"{name}: column {column!r} holds scores such as {scores[0]}, not tags; give "
            "captions.tag_thresholds, such as '{UNLIKELY: 0, UNSURE: 0.3, NSFW: 0.8}', or read no tags with "
            "captions.tag_column ''"
        )


def _by_threshold(name: str, column: str, values: pa.Array, thresholds: Mapping[str, float]) -> pa.Array:
    if pa.types.is_string(values.type):
        values = pc.utf8_trim_whitespace(values)
        values = pc.if_else(pc.equal(values, ""), None, values)
    if pa.types.is_string(values.type):
        values = pc.utf8_trim_whitespace(values)
        values = pc.if_else(pc.equal(values, ""), None, values)
    try:
        scores = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(
            f"{name}: captions.tag_thresholds needs scores, and column {column!r} holds {values.type} "
            f"({str(error).splitlines()[0]}); name another captions.tag_column"
        ) from None
    tags = sorted(thresholds, key=thresholds.get)
    below = np.searchsorted([thresholds[tag] for tag in tags], scores, side="right")
    below[np.isnan(scores)] = 0
    return pa.array([UNTAGGED, *tags], pa.string()).take(pa.array(below))
