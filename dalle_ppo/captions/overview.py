"""An overview of a source of captions: files, columns, tags, what filters drop, what is left out and why."""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.compute as pc

from dalle_ppo.captions.columns import Chunk, Columns
from dalle_ppo.captions.local_files import LeftOut
from dalle_ppo.captions.shards import Shard, UnreadableShard
from dalle_ppo.captions.source import Contents
from dalle_ppo.captions.streams import DrawSettings, text_at
from dalle_ppo.captions.suffixes import kind_of
from dalle_ppo.captions.tags import UNTAGGED, in_order
from dalle_ppo.captions.text import caption_id, clean

SAMPLE_ROWS = 200_000
FILTERED_ROWS = 20_000
EXAMPLES = 10


class Pass:
    """One pass through all captions, held out or not: admits those that pass the filters, counts the rest."""

    def __init__(self, settings: DrawSettings):
        self.dropped: Counter[str] = Counter()
        self._settings, self._seen = settings, set()

    def admitted(self, text: str) -> str | None:
        """The text as it would be drawn; None if it is dropped."""
        text = clean(text) if self._settings.clean else text
        reason = self._settings.filter.reason_to_drop(text)
        if reason is None and self._settings.drop_duplicates and self._is_repeat(text):
            reason = "duplicate"
        if reason is None:
            return text
        self.dropped[reason] += 1
        return None

    def _is_repeat(self, text: str) -> bool:
        """Whether the caption came before, however long ago; a million of them take about 60 MB."""
        key, before = int(caption_id(text), 16), len(self._seen)
        self._seen.add(key)
        return len(self._seen) == before


@dataclass(frozen=True)
class FileContents:
    """One file.

    Args:
        name: the file's name.
        rows: captions read from it, after `captions.where`; only those seen if not all were.
        columns: the columns that are read; None if it has none.
        tags: how many rows have each tag.
        complete: whether all its rows were seen.
    """

    name: str
    rows: int
    columns: Columns | None
    tags: Counter
    complete: bool


@dataclass(frozen=True)
class Overview:
    """What a source holds.

    Args:
        files: what each file holds.
        left_out: files that are not read.
        examples: the first captions, with their tags.
        dropped: how many of the `filtered` captions the filters drop, by reason.
        filtered: how many captions went through the filters.
        unseen_rows: rows of files, or of parts of them, whose tags were not looked at.
        unopened: files that were not opened.
    """

    files: list[FileContents]
    left_out: Sequence[LeftOut]
    examples: list[tuple[str, str]] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)
    filtered: int = 0
    unseen_rows: int = 0
    unopened: int = 0

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files) + self.unseen_rows

    @property
    def tags(self) -> Counter:
        return sum((file.tags for file in self.files), Counter())

    def to_dict(self) -> dict:
        """As `python -m dalle_ppo.captions --json` prints it."""
        tags = self.tags
        return {
            "files": [
                {
                    "file": file.name,
                    "rows": file.rows,
                    "caption_column": file.columns.caption if file.columns else None,
                    "tag_column": file.columns.tag if file.columns else None,
                    "tags": {tag: file.tags[tag] for tag in in_order(file.tags)},
                }
                for file in self.files
            ],
            "rows": self.rows,
            "tags": {tag: tags[tag] for tag in in_order(tags)},
            "left_out": [{"file": left.file, "why": left.why} for left in self.left_out],
            "dropped": dict(self.dropped),
            "complete": not (self.unseen_rows or self.unopened),
        }


def look_at(contents: Contents, settings: DrawSettings, max_rows: int | None = None) -> Overview:
    """Reads the files of a source in order; over the network, only the beginning of the first.

    Args:
        contents: the source's files.
        settings: their filters are tried on the first captions.
        max_rows: how many captions to look at; None looks at all.

    Raises:
        ValueError: a file cannot be read, unless the settings skip those.
    """
    shards, max_rows = (contents.shards[:1], 1) if contents.remote else (contents.shards, max_rows)
    files, unseen, seen = [], 0, 0
    examples: list[tuple[str, str]] = []
    one_pass, bad = Pass(settings), {left.file: left for left in contents.left_out}
    filtered = 0
    for shard in shards:
        tags, rows, complete = Counter(), 0, True
        for chunk in _chunks(shard, settings, bad):
            if max_rows is not None and seen >= max_rows:
                complete = False
                break
            rows, seen = rows + len(chunk.texts), seen + len(chunk.texts)
            tags += Counter({v["values"]: v["counts"] for v in pc.value_counts(chunk.tags).to_pylist()})
            for row in range(min(len(chunk.texts), FILTERED_ROWS - filtered)):
                filtered += 1
                text = one_pass.admitted(text_at(chunk.texts, row))
                if text is not None and len(examples) < EXAMPLES:
                    examples.append((text, chunk.tags[row].as_py()))
        damaged = shard.name in bad
        unseen += 0 if complete or damaged else max(0, shard.num_rows - rows)
        if rows or not damaged:
            complete = complete and not damaged
            files.append(FileContents(shard.name, rows, shard.columns, tags, complete))
    unopened = len(contents.shards) - len(shards)
    return Overview(files, list(bad.values()), examples, one_pass.dropped, filtered, unseen, unopened)


def every_caption(shards: Sequence[Shard], settings: DrawSettings) -> Iterator[tuple[str, str]]:
    """Every caption that passes the filters, once, in the order of the files; held out or not."""
    yield from _admitted(shards, Pass(settings), settings)


def left_out(shards: Sequence[Shard], settings: DrawSettings) -> Counter[str]:
    """How many captions `every_caption` leaves out, by reason."""
    one_pass = Pass(settings)
    for _ in _admitted(shards, one_pass, settings):
        pass
    return one_pass.dropped


def _admitted(shards: Sequence[Shard], one_pass: Pass, settings: DrawSettings) -> Iterator[tuple[str, str]]:
    for shard in shards:
        for chunk in _chunks(shard, settings, {}):
            for row in range(len(chunk.texts)):
                text = one_pass.admitted(text_at(chunk.texts, row))
                if text is not None:
                    yield text, chunk.tags[row].as_py()


def _chunks(shard: Shard, settings: DrawSettings, bad: dict[str, LeftOut]) -> Iterator[Chunk]:
    """The chunks of a file, up to the first that cannot be read if those are skipped; then `bad` names it."""
    try:
        for group in range(shard.num_groups()):
            for number, chunk in enumerate(shard.chunks(group)):
                yield chunk.drawn([group, number])
    except ValueError as error:
        if not settings.skip_bad_files:
            raise
        known = shard.name in bad or isinstance(shard, UnreadableShard)  # warned of when it was opened
        bad.setdefault(shard.name, LeftOut(shard.name, str(error)))
        if not known:
            # From one place, so that looking at a file twice warns once.
            warnings.warn(f"captions: file skipped: {error}", stacklevel=1)


def as_text(overview: Overview) -> str:
    """The overview in a few lines, as a run prints it when it starts."""
    lines = [_headline(overview), *_file_lines(overview), *_column_lines(overview)]
    tags, seen = overview.tags, sum(overview.tags.values())
    if seen:
        about = f" (of the first {seen:,} rows)" if overview.unseen_rows else ""
        listed = ", ".join(f"{tag} {tags[tag]:,} ({tags[tag] / seen:.1%})" for tag in in_order(tags))
        lines.append(f"  tags{about}: {listed}")
    if overview.dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(overview.dropped.items()))
        lines.append(f"  dropped by filters, of the first {overview.filtered:,}: {reasons}")
    by_why: dict[str, list[str]] = {}
    for left in overview.left_out:
        by_why.setdefault(left.why, []).append(left.file)
    for why, files in by_why.items():
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        lines.append(f"  left out: {Path(files[0]).name}{more}: {why}")
    return "\n".join(lines)


def _headline(overview: Overview) -> str:
    if not overview.files:
        more = f"; {overview.unopened} more are not opened yet" if overview.unopened else ""
        return f"captions: no file could be read{more}"
    kinds = Counter(kind_of(Path(file.name)).lstrip(".") or "prompts" for file in overview.files)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    about = "about " if overview.unseen_rows else ""
    files = "file" if len(overview.files) == 1 else "files"
    more = f", and {overview.unopened} more not opened yet" if overview.unopened else ""
    return f"captions: {about}{overview.rows:,} rows in {len(overview.files)} {files} ({listed}){more}"


def _file_lines(overview: Overview, most: int = 8) -> list[str]:
    if len(overview.files) < 2:
        return []
    lines = [
        f"  {Path(file.name).name}: {'' if file.complete else 'at least '}{file.rows:,} rows"
        for file in overview.files[:most]
    ]
    rest = len(overview.files) - most
    return lines + ([f"  and {rest} more files"] if rest > 0 else [])


def _column_lines(overview: Overview) -> list[str]:
    """Which columns are read, and which files lack the tag column."""
    if not overview.files:
        return []
    lines = []
    captions = Counter(file.columns.caption for file in overview.files if file.columns)
    if captions:
        lines.append(f"  captions from column {' and '.join(captions)}")
    tagged = [file for file in overview.files if file.columns and file.columns.tag]
    untagged = [file for file in overview.files if not (file.columns and file.columns.tag)]
    # Without a column of tags, files hold what captions.tag_map makes of UNTAGGED, prompt sets their tags.
    missing = in_order(tag for file in untagged for tag in file.tags) or [UNTAGGED]
    if tagged:
        names = dict.fromkeys(file.columns.tag for file in tagged)
        lines.append(f"  tags from column {' and '.join(names)}")
    if len(missing) > 1:
        return lines
    if not tagged:
        lines.append(f"  no tag column: every caption is {missing[0]}")
    elif untagged:
        rows = sum(file.rows for file in untagged)
        lines.append(
            f"  not in {Path(untagged[0].name).name}"
            f"{f' and {len(untagged) - 1} more' if len(untagged) > 1 else ''} "
            f"of {len(overview.files)} files: their {rows:,} rows are {missing[0]}"
        )
    return lines
