"""The captions that `evaluate --captions` names, instead of the run's held-out ones."""

import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from dalle_ppo.build.captions import read_settings
from dalle_ppo.captions.local_files import find_files
from dalle_ppo.captions.overview import left_out
from dalle_ppo.captions.reading import ReadSettings
from dalle_ppo.captions.source import (
    CaptionRecord,
    CaptionRequest,
    Contents,
    first_distinct,
    is_frozen,
    open_captions,
)
from dalle_ppo.captions.streams import DrawSettings
from dalle_ppo.captions.suffixes import kind_of
from dalle_ppo.captions.text import CaptionFilter
from dalle_ppo.config.captions import READING, CaptionsConfig
from dalle_ppo.config.settings import Config

PROMPT_SETS = ("prompts:", "drawbench:", "partiprompts:", "hpdv2:")
"""Caption sources that know their own columns, and whose prompts are all meant to be drawn."""


def given_captions(
    config: Config, source: str, given: Collection[str] = (), num: int | None = None
) -> list[CaptionRecord]:
    """Distinct captions of a source, held out or not, as they stand there: neither cleaned nor filtered.

    Says so where only a part of them is drawn, and how many are left out because they repeat others: captions
    count as equal if their words are, and equal ones would be drawn from the same noise.

    Args:
        config: the run's settings, with those of the command line.
        source: as in `captions.source`.
        given: names of the settings for reading that the command line gives, such as "column".
        num: how many are wanted; None takes all prompts of a prompt set and all captions of an earlier
            evaluation, and of any other source at most `evaluation.num_captions`.

    Raises:
        ValueError: it cannot be read or contains no captions.
    """
    everything = source.startswith(PROMPT_SETS) or _is_of_evaluation(source)
    wanted = num or (None if everything else config.evaluation.num_captions)
    draw = DrawSettings(config.evaluation.seed, split=None, filter=CaptionFilter(max_chars=sys.maxsize))
    reading = _reading(config.captions, source, given)
    opened = open_captions(source, CaptionRequest(draw, reading=reading))
    captions = first_distinct(opened, sys.maxsize if wanted is None else wanted + 1)
    if wanted is not None and len(captions) > wanted:
        # A parquet file's own number of rows knows no condition.
        rows = "" if reading.where else _rows(opened.contents)
        print(f"captions: {wanted:,} of {source}{rows} are drawn; --num_captions N draws more")
    elif opened.contents is not None and not opened.contents.remote:
        _tell_left_out(source, left_out(opened.contents.shards, draw))
    return captions[:wanted]


def _tell_left_out(source: str, reasons: Counter[str]) -> None:
    words = {"duplicate": "repeats", "empty": "empty"}
    listed = ", ".join(f"{count:,} {words.get(why, why)}" for why, count in sorted(reasons.items()))
    if listed:
        print(f"captions: {reasons.total():,} of {source} left out: {listed}; all others are drawn")


def _reading(captions: CaptionsConfig, source: str, given: Collection[str]) -> ReadSettings:
    """How the source is read; the run's columns are of other files than those that have their own."""
    own_columns = source.startswith(PROMPT_SETS) or _is_text(source) or _is_of_evaluation(source)
    if own_columns:
        captions = replace(captions, **{n: getattr(CaptionsConfig, n) for n in READING if n not in given})
    return read_settings(captions)


def _is_of_evaluation(source: str) -> bool:
    files = _files(source)
    return len(files) == 1 and is_frozen(files[0])


def _is_text(source: str) -> bool:
    files = _files(source)
    return bool(files) and all(kind_of(file) == ".txt" for file in files)


def _files(source: str) -> list[Path]:
    """The files that a source names; none if it names none."""
    try:
        return [path for path, _ in find_files(source.removeprefix("files:")).files]
    except ValueError:
        return []


def _rows(contents: Contents | None) -> str:
    if contents is None or contents.remote:
        return ""
    return f", which has {sum(shard.num_rows for shard in contents.shards):,} rows,"
