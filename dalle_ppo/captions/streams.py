"""Streams of captions with one tag: the order depends only on a seed; the position is a few integers."""

import base64
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dalle_ppo.captions.columns import Chunk
from dalle_ppo.captions.shards import Shard, UnreadableShard
from dalle_ppo.captions.text import SPLITS, CaptionFilter, Fingerprint, clean, fingerprint

DUPLICATE_WINDOW = 1 << 15
CHUNKS_BETWEEN_WARNINGS = 200


@dataclass(frozen=True)
class CaptionRecord:
    """One caption: its text, its tag (UNTAGGED if it has none) and the stable id of its normalised text."""

    text: str
    tag: str
    id: str


@dataclass(frozen=True)
class DrawSettings:
    """What decides which captions a process draws, and in which order.

    seed, stream: decide the order; training and evaluation use different streams.
    split: 'train' or 'heldout', by the hash of the normalised text; None for all captions.
    heldout_share: share of all captions that is held out. The built-in world has its own rule.
    rank, world_size: this process draws the captions whose hash assigns them to it.
    filter, clean, drop_duplicates: see `CaptionFilter` and `captions.text.clean`; a duplicate of one of
        the last DUPLICATE_WINDOW captions of its pass and tag is dropped.
    skip_bad_files: if a file cannot be read, continue with a warning and a count.
    """

    seed: int = 0
    stream: int = 0
    split: str | None = "train"
    heldout_share: float = 0.1
    rank: int = 0
    world_size: int = 1
    filter: CaptionFilter = field(default_factory=CaptionFilter)
    clean: bool = False
    drop_duplicates: bool = True
    skip_bad_files: bool = False

    def __post_init__(self) -> None:
        if self.split not in (*SPLITS, None):
            raise ValueError(f"split: {self.split!r} is unknown; use {' or '.join(SPLITS)}, or null for all")
        if not 0 <= self.heldout_share < 1:
            raise ValueError(f"heldout_share: {self.heldout_share} must be at least 0 and below 1")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank: {self.rank} must be at least 0 and below world_size = {self.world_size}")


class TooFewCaptions(ValueError):
    """Raised if there are captions, but too few on the wanted side of the split."""


class RecentCaptions:
    """The last DUPLICATE_WINDOW captions.

    Args:
        keys: of the captions so far, as `keys` returns them.
    """

    def __init__(self, keys: Sequence[int] = ()):
        self._keys: dict[int, None] = dict.fromkeys(keys)

    def keys(self) -> list[int]:
        return list(self._keys)

    def seen(self, mark: Fingerprint) -> bool:
        """Whether the caption is one of them; if not, it becomes the newest."""
        key = int(mark.id, 16)
        if key in self._keys:
            return True
        self._keys[key] = None
        if len(self._keys) > DUPLICATE_WINDOW:
            del self._keys[next(iter(self._keys))]
        return False


class Stream(Protocol):
    """An endless sequence of captions with one tag."""

    counts: Counter[str]

    def next_record(self) -> CaptionRecord: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class ShardStream:
    """Captions with one tag from shards, pass after pass.

    Each pass goes through the shards, and the row groups of each, in a new random order; rows are shuffled
    within chunks of 65 536. Only the current chunk is in memory, and rows with other tags are dropped in
    compiled code.

    Args:
        shards: at least one.
        settings: which captions to draw.
        select: gives a mask of the rows of a chunk that belong to the stream.
        tag: the tag if `select` admits one tag only; row groups that cannot hold it are not read.
        label: the stream's name in messages.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        settings: DrawSettings,
        select: Callable[[Chunk], pa.Array],
        tag: str | None,
        label: str,
    ):
        self.counts: Counter[str] = Counter()
        self._shards, self._settings, self._select = shards, settings, select
        self._tag, self._label = tag, label
        # (pass, shard, row group, chunk, row) of the row to look at next, each counted in the order drawn.
        self._position = [0, 0, 0, 0, 0]
        self._key = [settings.seed, settings.stream]
        self._recent = RecentCaptions()
        self._candidates = self._walk()

    @property
    def passes(self) -> int:
        """How many whole passes came before the last record."""
        return self._position[0]

    def next_record(self) -> CaptionRecord:
        try:
            return next(self._candidates)
        except ValueError:
            self._candidates = self._walk()  # the position is unchanged: asking again tries again
            raise

    def state_dict(self) -> dict[str, Any]:
        recent = np.array(self._recent.keys(), dtype="<u8").tobytes()
        return {
            "position": list(self._position),
            "recent": base64.b64encode(recent).decode("ascii"),
            "counts": dict(self.counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._position = list(state["position"])
        recent = np.frombuffer(base64.b64decode(state["recent"]), dtype="<u8")
        self._recent = RecentCaptions(recent.tolist())
        self.counts = Counter(state["counts"])
        self._candidates = self._walk()

    def _walk(self) -> Iterator[CaptionRecord]:
        """Records from the current position on, for ever; the position moves before each is handed out."""
        start = list(self._position)
        whole_pass = start[1:] == [0, 0, 0, 0]
        while True:
            found, before = False, self.counts.copy()
            for record in self._walk_pass(start):
                found = True
                yield record
            if whole_pass and not found:
                raise self._nothing_found(self.counts - before)
            self._recent = RecentCaptions()
            start = [start[0] + 1, 0, 0, 0, 0]
            whole_pass = True

    def _walk_pass(self, start: list[int]) -> Iterator[CaptionRecord]:
        number, chunks_without = start[0], 0
        order = self._permutation(len(self._shards), number)
        for s in range(start[1], len(order)):
            in_shard = start[2:] if s == start[1] else [0, 0, 0]
            try:
                for group, c, chunk in self._walk_shard(order[s], number, in_shard):
                    first_row = in_shard[2] if [group, c] == in_shard[:2] else 0
                    rows = self._candidate_rows(chunk, [number, int(order[s]), group, c])
                    chunks_without += 1
                    for at in range(first_row, len(rows)):
                        self._position = [number, s, group, c, at + 1]
                        record = self._record(chunk, int(rows[at]))
                        if record is not None:
                            chunks_without = 0
                            yield record
                    if chunks_without and chunks_without % CHUNKS_BETWEEN_WARNINGS == 0:
                        warnings.warn(
                            f"captions: no {self._label} in {chunks_without} chunks of rows, still looking",
                            stacklevel=2,
                        )
            except ValueError as error:
                if not self._settings.skip_bad_files:
                    raise
                self.counts["bad files"] += 1
                if not isinstance(self._shards[order[s]], UnreadableShard):  # warned of when it was opened
                    warnings.warn(f"captions: file skipped: {error}", stacklevel=2)

    def _walk_shard(self, index: int, number: int, start: list[int]) -> Iterator[tuple[int, int, Chunk]]:
        """(index of the row group in this pass, index of the chunk in it, chunk) from a position onwards."""
        shard = self._shards[index]
        order = self._permutation(shard.num_groups(), number, int(index))
        for g in range(start[0], len(order)):
            if self._tag is not None and not shard.may_hold(int(order[g]), self._tag):
                continue
            for c, chunk in enumerate(shard.chunks(int(order[g]))):
                if g == start[0] and c < start[1]:
                    continue
                if [g, c] != start[:2] or start[2] == 0:  # otherwise counted before the position was saved
                    self.counts["read"] += len(chunk.texts)
                yield g, c, chunk.drawn([*self._key, number, int(index), int(order[g]), c])

    def _candidate_rows(self, chunk: Chunk, key: list[int]) -> np.ndarray:
        """Rows with the stream's tag, shuffled."""
        rows = np.flatnonzero(self._select(chunk).to_numpy(zero_copy_only=False))
        return rows[self._permutation(len(rows), *key)]

    def _permutation(self, size: int, *key: int) -> np.ndarray:
        return np.random.default_rng([*self._key, *key]).permutation(size)

    def _record(self, chunk: Chunk, row: int) -> CaptionRecord | None:
        """The caption in a row, or None (counted by reason) if it is dropped."""
        settings = self._settings
        text = text_at(chunk.texts, row)
        if settings.clean:
            text = clean(text)
        reason = settings.filter.reason_to_drop(text)
        if reason is None:
            mark = fingerprint(text)
            reason = self._reason_by_hash(mark)
        if reason is not None:
            self.counts[reason] += 1
            return None
        self.counts["drawn"] += 1
        return CaptionRecord(text, chunk.tags[row].as_py(), mark.id)

    def _reason_by_hash(self, mark: Fingerprint) -> str | None:
        settings = self._settings
        if settings.split is not None and mark.split(settings.heldout_share) != settings.split:
            return "other split"
        if mark.shard_number % settings.world_size != settings.rank:
            return "other process"
        if settings.drop_duplicates and self._recent.seen(mark):
            return "duplicate"
        return None

    def _nothing_found(self, counts: Counter[str]) -> ValueError:
        reasons = ", ".join(f"{count} {key}" for key, count in sorted(counts.items()) if key != "read")
        names = self._shards[0].name + (f" and {len(self._shards) - 1} more" if len(self._shards) > 1 else "")
        kind = TooFewCaptions if counts["other split"] else ValueError
        return kind(
            f"captions: no {self._label} to draw in {names} ({counts['read']} rows read; {reasons or 'none'} "
            "dropped); "
            "change the shares, the split or the filters, or give other captions"
        )


def select_all(chunk: Chunk) -> pa.Array:
    """Selects every row."""
    return pa.array(np.ones(len(chunk.texts), dtype=bool))


def select_tag(tag: str) -> Callable[[Chunk], pa.Array]:
    """Selects the rows with one tag."""
    return lambda chunk: pc.equal(chunk.tags, tag)


def select_other(named: Sequence[str]) -> Callable[[Chunk], pa.Array]:
    """Selects the rows with any tag except those named."""
    return lambda chunk: pc.invert(pc.is_in(chunk.tags, value_set=pa.array(named, pa.string())))


def text_at(texts: pa.Array, row: int) -> str:
    """One text; bytes that are not UTF-8 become the replacement character, null becomes the empty text."""
    value = texts[row].as_buffer()
    return "" if value is None else value.to_pybytes().decode("utf8", errors="replace")
