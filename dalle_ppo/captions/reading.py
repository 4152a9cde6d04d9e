"""How captions are read from files: which columns, which rows, and what counts as a tag."""

import re
from collections.abc import Mapping, Sequence
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
    """The `captions.*` settings that apply to files; the defaults read every row of the usual columns.

    Args:
        column, tag_column: names of columns; a dot reaches into a struct. An empty tag column reads no tags.
        header: whether delimited files begin with a line of names; None detects it.
        quoting: whether quotes in delimited files hold a field together; "auto" detects it.
        lists: whether to read all captions of a row that holds a list, or one drawn at random in each pass.
        tag_map: new names for tags, by their name in the file.
        tag_thresholds: tags for a column of scores; each one applies from its threshold up.
        where: which rows to read, as an SQL condition on the columns.

    Raises:
        ValueError: `where` is not a condition, thresholds are unusable, or there are thresholds and a map.
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
            raise ValueError("captions.tag_map and captions.tag_thresholds cannot be combined; set only one")
        if self.tag_thresholds and self.tag_column == "":
            raise ValueError(
                "captions.tag_thresholds needs a column of scores; name it with captions.tag_column"
            )
        bounds = list((self.tag_thresholds or {}).values())
        if len(set(bounds)) < len(bounds) or any(bound != bound for bound in bounds):
            raise ValueError(
                f"captions.tag_thresholds is {self.tag_thresholds}; thresholds must be different numbers"
            )
        if self.where is not None:
            self.condition  # noqa: B018  parsed now, so that a mistake is found before any file is opened

    @cached_property
    def condition(self) -> "Condition":
        """`where`, parsed."""
        return Condition(self.where)

    @property
    def untagged(self) -> str:
        """The tag of a caption without one, in a column of tags or in a file without such a column."""
        return (self.tag_map or {}).get(UNTAGGED, UNTAGGED)


LONGEST_CONDITION, MOST_PARENTHESES = 4000, 40


def shown(value: object) -> str:
    """A value for a message, on one line and not too long."""
    text = repr(value[:40] if isinstance(value, str | list) else value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def shown_names(names: Sequence[str]) -> str:
    """Names for a message, on one line; of very many or very long ones the first."""
    text = " ".join(", ".join(names[:50]).split()) or "none"
    more = f" and {len(names) - 50} more" if len(names) > 50 else ""
    return (text if len(text) <= 600 else f"{text[:600]}...") + more


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
        if len(text) > LONGEST_CONDITION:
            raise ValueError(
                f"captions.where is too long, {len(text)} characters; shorten it to {LONGEST_CONDITION}"
            )
        if text.count("(") > MOST_PARENTHESES:  # a parser that calls itself runs out of stack
            raise ValueError(
                f"captions.where has {text.count('(')} parentheses; use at most {MOST_PARENTHESES}"
            )
        try:
            self._expression = polars.sql_expr(text)
            self.columns = tuple(dict.fromkeys(self._expression.meta.root_names()))
        except Exception as error:
            raise ValueError(
                f"captions.where is {text!r}, which is not a condition ({error}); write one such as "
                '"punsafe < 0.5 and width >= 256"'
            ) from None
        if not self.columns:
            raise ValueError(f"captions.where is {text!r}; it must name a column")

    @cached_property
    def compared_with_text(self) -> frozenset[str]:
        """Those of `self.columns` that stand beside a text in the condition, as in `key = '0012'`."""
        return frozenset(_beside_text(self._expression))

    def mask(self, name: str, columns: list[pa.Array]) -> pa.Array:
        """Which rows meet the condition; a null does not.

        Args:
            name: what messages call the file.
            columns: the values of `self.columns`.

        Raises:
            ValueError: the columns cannot be compared that way.
        """
        import polars

        series = [polars.from_arrow(values) for values in columns]
        frame = polars.DataFrame({c: v for c, v in zip(self.columns, series, strict=True)}).fill_nan(None)
        numbers = frame.with_columns(_numbers(frame[c]) for c in frame.columns)
        try:
            try:
                # A text column of only numbers is compared as numbers, unless the condition needs text.
                mask = numbers.select(self._expression.alias("mask"))["mask"]
            except polars.exceptions.PolarsError:
                mask = frame.select(self._expression.alias("mask"))["mask"]
        except polars.exceptions.PolarsError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{name}: captions.where is {self.text!r}: {reason}") from None
        if mask.dtype != polars.Boolean or len(mask) != len(frame):
            raise ValueError(
                f"captions.where is {self.text!r}; it must be true or false for each row, such as "
                '"punsafe < 0.5 and width >= 256"'
            )
        return mask.fill_null(False).to_arrow()


def _beside_text(expression) -> set[str]:
    """The columns in those parts of a Polars expression that have a text, or a list of texts, as a part."""
    parts = expression.meta.pop()
    names = set().union(*(_beside_text(part) for part in parts))
    if any(map(_is_text, parts)):
        names.update(name for part in parts for name in part.meta.root_names())
    return names


def _is_text(expression) -> bool:
    import polars

    if expression.meta.root_names():
        return False
    try:
        return polars.select(expression).to_series().dtype in (polars.String, polars.List(polars.String))
    except polars.exceptions.PolarsError:
        return False  # computing the whole condition says why


def _numbers(series):
    """A text column as numbers if every value is one; any other column as it is."""
    import polars

    if series.dtype != polars.String or series.null_count() == len(series):
        return series
    cast = series.cast(polars.Float64, strict=False)
    return cast if cast.null_count() == series.null_count() else series


def spelled(value: object) -> str:
    """One spelling of a tag, whatever kind of file it comes from.

    `True`, `true` and a spreadsheet's `TRUE` become `true`; `1` and `1.0` become `1`; null, blanks and NaN
    become UNTAGGED.
    """
    if value is None or value != value:
        return UNTAGGED
    text = (value.decode("utf8", "replace") if isinstance(value, bytes) else str(value)).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    if text.lower() in ("nan", "null"):
        return UNTAGGED
    whole = _INTEGER.fullmatch(text)
    return whole[1] if whole else text or UNTAGGED


def make_tags(name: str, column: str, values: pa.Array, reading: ReadSettings) -> pa.Array:
    """The tags in a column: spelled uniformly, then mapped, or derived from scores by the thresholds.

    Args:
        name, column: what messages call them.
        values: text, booleans or numbers.
        reading: the settings; only the map and the thresholds are used.

    Returns:
        Strings without nulls.

    Raises:
        ValueError: the column holds scores but there are no thresholds, or it holds none but there are.
    """
    if reading.tag_thresholds:
        return _by_threshold(name, column, values, reading.tag_thresholds)
    if pa.types.is_nested(values.type):
        raise ValueError(
            f"{name}: column {column!r} holds {values.type}, not tags; name another captions.tag_column"
        )
    encoded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    _refuse_scores(name, column, distinct)
    tags = [spelled(value) for value in distinct]
    if reading.tag_map:
        tags = [reading.tag_map.get(tag, tag) for tag in tags]
    return pc.fill_null(pa.array(tags, pa.string()).take(encoded.indices), reading.untagged)


def is_score(value: object) -> bool:
    """Whether a tag is a number but not a whole one."""
    number = _number(value)
    return number is not None and np.isfinite(number) and number != int(number)


def _number(value: object) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _refuse_scores(name: str, column: str, distinct: list) -> None:
    values = [value for value in distinct if spelled(value) != UNTAGGED]
    scores = [value for value in values if is_score(value)]
    if scores and all(_number(value) is not None for value in values):
        raise ValueError(
            f"{name}: column {column!r} holds scores such as {scores[0]}, not tags; give "
            "captions.tag_thresholds, such as '{UNLIKELY: 0, UNSURE: 0.3, NSFW: 0.8}', or read no tags with "
            "captions.tag_column ''"
        )


def _by_threshold(name: str, column: str, values: pa.Array, thresholds: Mapping[str, float]) -> pa.Array:
    try:
        if not pa.types.is_floating(values.type):
            texts = [None if spelled(value) == UNTAGGED else spelled(value) for value in values.to_pylist()]
            values = pa.array(texts, pa.string()).cast(pa.float64())
        scores = values.to_numpy(zero_copy_only=False)
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(
            f"{name}: captions.tag_thresholds needs scores, but column {column!r} holds something else "
            f"({str(error).splitlines()[0]}); name another captions.tag_column"
        ) from None
    tags = sorted(thresholds, key=thresholds.get)
    # Compared in the column's own precision: 0.7 in float32 is below 0.7.
    below = np.searchsorted(np.array([thresholds[tag] for tag in tags], scores.dtype), scores, side="right")
    below[np.isnan(scores)] = 0
    return pa.array([UNTAGGED, *tags], pa.string()).take(pa.array(below))
