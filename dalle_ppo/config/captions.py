"""Settings of the captions."""

from dataclasses import dataclass
from typing import Literal

from dalle_ppo.base.checks import at_least_one, not_empty

READING = ("column", "tag_column", "header", "quoting", "lists", "tag_map", "tag_thresholds", "where")
"""The settings that say how a file is read, in the names of `captions.reading.ReadSettings`."""


@dataclass(frozen=True)
class CaptionsConfig:
    """Where captions come from, how they are mixed and which are left out."""

    source: str = "builtin"
    """"builtin" for the built-in world; "hub:OWNER/NAME" for a data set on the hub, read with the token in
    HF_TOKEN; "prompts:NAME" for simple_animals, animal_activities or counting; "drawbench:FILE",
    "partiprompts:FILE" or "hpdv2:FOLDER" for these prompt sets, downloaded; "NAME:REST" for a source that you
    added; or a parquet, CSV, TSV, JSON, JSONL or text file, or a folder or glob of them."""
    column: str | None = None
    """The column that holds the caption, in any case; null looks for TEXT, caption, text and so on.
    "meta.caption" is a field of a struct; a number, from 0, is a column of a file without a header."""
    tag_column: str | None = None
    """The column that holds the tag; null looks for NSFW and tag in any case, and '' reads no tags. A missing
    tag counts as UNTAGGED."""
    header: bool | None = None
    """Whether CSV and TSV files begin with a line of column names; null detects it."""
    quoting: Literal["auto", "none", "standard"] = "auto"
    """Whether quotes in CSV and TSV files hold a field together ("standard") or belong to the caption
    ("none"). "auto" uses "standard" for commas, and detects it for tabs."""
    lists: Literal["all", "one"] = "all"
    """For rows with a list of captions: "all" of them, or "one" drawn at random in each pass."""
    tag_map: dict[str, str] | None = None
    """New names for tags, such as {true: NSFW, false: UNLIKELY}; tags that are not listed keep theirs."""
    tag_thresholds: dict[str, float] | None = None
    """Tags for a column of scores, each from its threshold up, such as
    {UNLIKELY: 0, UNSURE: 0.3, NSFW: 0.8}; if `tag_column` is null, the column is punsafe."""
    where: str | None = None
    """Only rows that meet this SQL condition on the columns, such as "punsafe < 0.5 and width >= 256"."""
    shares: dict[str, float] | None = None
    """Share of each tag in a batch; OTHER is every tag not named. null means half UNLIKELY and a quarter each
    UNSURE and NSFW for "builtin", half NSFW and half OTHER for "hub:" with tags, and captions as they come
    for everything else."""
    clean: bool = False
    """Repair mojibake, decode entities, drop HTML tags and control characters, and collapse spaces."""
    drop_duplicates: bool = True
    """Drop captions whose normalised text was drawn shortly before. The built-in world makes up its captions
    as they are drawn and drops none."""
    min_chars: int = 1
    """Shortest caption, in characters."""
    max_chars: int = 2000
    """Longest caption, in characters."""
    min_latin_share: float = 0.0
    """Smallest share of Latin letters among a caption's letters; 0 admits every script."""
    blocklist: str | None = None
    """File with one phrase per line; captions that contain one of them are left out."""
    allowlist: str | None = None
    """File with one phrase per line; captions that contain none of them are left out."""
    skip_bad_files: bool = False
    """Leave out files that cannot be read, with a warning and a count, instead of stopping. Not for the
    built-in world, which has no files."""
    rank: int = 0
    """Number of this run, counting from 0, among the runs that share the captions. Each trains on its own
    share; together they see the captions that a single run would see. Held-out captions are the same for
    all."""
    world_size: int = 1
    """How many runs share the captions."""

    def __post_init__(self) -> None:
        not_empty(self, "captions", "shares")
        at_least_one(self, "captions", "world_size")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"captions.rank is {self.rank}; it must lie between 0 and captions.world_size - 1 = "
                f"{self.world_size - 1}"
            )
