"""Batches of captions in given shares of tags: LAION-400M, own files, prompt sets, the built-in world.

Every source is a set of streams, one for each tag that has a share. A stream's order depends on its seed only
and its position is a few integers, so a resumed run draws exactly the captions that were due.
"""

import hashlib
import math
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_ppo import prompt_sets
from dalle_ppo.caption_files import Shard, TableShard, find_files, hub_shards, open_shard
from dalle_ppo.caption_streams import (
    CaptionRecord,
    DrawSettings,
    ShardStream,
    Stream,
    WorldStream,
    select_all,
    select_other,
    select_tag,
)

OTHER = "OTHER"
WORLD_SHARES = {"UNLIKELY": 0.5, "UNSURE": 0.25, "NSFW": 0.25}
LAION_SHARES = {"NSFW": 0.5, OTHER: 0.5}


class CaptionSource:
    """Draws from one stream a tag so that after any number of captions each share is met within one caption.

    Args:
        streams: a stream for each key of `shares`.
        shares: key to share; they add up to 1.
        identity: what a saved position belongs to; a position of another identity is refused.
    """

    def __init__(
        self, streams: Mapping[str, Stream], shares: Mapping[str, float], identity: Mapping[str, Any]
    ):
        check_shares(shares)
        self._streams = {key: streams[key] for key, share in shares.items() if share > 0}
        self._shares = {key: share for key, share in shares.items() if share > 0}
        self._identity = {**identity, "shares": dict(self._shares)}
        self._drawn = dict.fromkeys(self._shares, 0)
        self._tags: Counter[str] = Counter()

    def next_batch(self, n: int) -> list[CaptionRecord]:
        """The next `n` captions; their tags are interleaved.

        Raises:
            ValueError: a tag with a share has no caption at all, or a file cannot be read.
        """
        return [self._next_record() for _ in range(n)]

    def achieved_shares(self) -> dict[str, float]:
        """Share of each tag among all captions drawn so far, the tags as the data name them."""
        total = max(1, self._tags.total())
        return {tag: count / total for tag, count in sorted(self._tags.items())}

    def counts(self) -> dict[str, int]:
        """What was seen and dropped on the way, by reason (this process, since it started)."""
        return dict(sum((stream.counts for stream in self._streams.values()), Counter()))

    def state_dict(self) -> dict[str, Any]:
        """The position, JSON-able."""
        streams = {key: stream.state_dict() for key, stream in self._streams.items()}
        return {
            "identity": self._identity,
            "drawn": dict(self._drawn),
            "tags": dict(self._tags),
            "streams": streams,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position: the next batch is the one that was due when it was saved.

        Raises:
            ValueError: the position is one of other captions or settings; the message names the difference.
        """
        for key, value in self._identity.items():
            if state["identity"].get(key) != value:
                raise ValueError(
                    f"captions: {key} was {state['identity'].get(key)!r} when the position was saved and is "
                    f"now {value!r}; resume with the same captions and settings"
                )
        self._drawn = dict(state["drawn"])
        self._tags = Counter(state["tags"])
        for key, stream in self._streams.items():
            stream.load_state_dict(state["streams"][key])

    def _next_record(self) -> CaptionRecord:
        total = sum(self._drawn.values()) + 1
        key = max(self._shares, key=lambda k: self._shares[k] * total - self._drawn[k])
        record = self._streams[key].next_record()
        self._drawn[key] += 1
        self._tags[record.tag] += 1
        return record


def open_captions(
    source: str,
    settings: DrawSettings,
    shares: Mapping[str, float] | None = None,
    *,
    caption_column: str | None = None,
    tag_column: str | None = None,
    token: str | None = None,
) -> CaptionSource:
    """Open a source of captions.

    Args:
        source: `builtin` (the built-in world), `hub:OWNER/NAME` (a data set on the hub), `prompts:NAME` (one
            of `prompt_sets`), or a file, folder or glob of parquet, CSV, TSV, JSONL or text files.
        settings: order, split, filters.
        shares: tag to share; the key OTHER stands for all tags not named. None: the mix of the built-in
            world, half NSFW for `hub:`, and the captions as they come for everything else.
        caption_column, tag_column: None looks for the usual names.
        token: access token of the hub.

    Raises:
        ValueError: the source cannot be read or holds no caption, or the shares do not add up.
    """
    if source == "builtin":
        shares = shares or WORLD_SHARES
        check_shares(shares)
        streams = {tag: WorldStream(tag, settings) for tag in shares}
        return CaptionSource(streams, shares, _identity(source, settings))
    if source.startswith("hub:"):
        shards = hub_shards(source.removeprefix("hub:"), token, caption_column, tag_column)
        shares = shares or LAION_SHARES
    elif source.startswith("prompts:"):
        name = source.removeprefix("prompts:")
        shards = [TableShard(source, prompt_sets.prompt_set(name))]
    else:
        shards = _open_files(source, caption_column, tag_column, settings.skip_bad_files)
    return caption_source(shards, settings, shares)


def caption_source(
    shards: Sequence[Shard], settings: DrawSettings, shares: Mapping[str, float] | None = None
) -> CaptionSource:
    """Draw from shards; `shares` None takes the captions as they come."""
    names = [Path(shard.name).name for shard in shards]
    identity = _identity(hashlib.sha256("\n".join(names).encode()).hexdigest()[:16], settings)
    if shares is None:
        stream = ShardStream(shards, settings, select_all, None, "caption")
        return CaptionSource({"all": stream}, {"all": 1.0}, identity)
    check_shares(shares)
    named = [tag for tag in shares if tag != OTHER]
    streams = {
        tag: ShardStream(shards, settings, select_tag(tag), tag, f"caption tagged {tag}") for tag in named
    }
    if OTHER in shares:
        label = f"caption tagged other than {', '.join(named)}"
        streams[OTHER] = ShardStream(shards, settings, select_other(named), None, label)
    return CaptionSource(streams, shares, identity)


def check_shares(shares: Mapping[str, float]) -> None:
    """ValueError unless the shares are at least 0 and add up to 1."""
    if any(not share >= 0 for share in shares.values()) or not math.isclose(
        sum(shares.values()), 1, abs_tol=1e-6
    ):
        listed = ", ".join(f"{tag}: {share}" for tag, share in shares.items()) or "none"
        raise ValueError(f"shares: {listed}; each must be at least 0 and together they must be 1")


def distinct_captions(source: CaptionSource, n: int) -> list[CaptionRecord]:
    """Draw `n` captions of which no two have one id, as an evaluation set.

    Raises:
        ValueError: the source repeats itself before there are that many.
    """
    records: dict[str, CaptionRecord] = {}
    for _ in range(20):
        for record in source.next_batch(n - len(records)):
            records.setdefault(record.id, record)
        if len(records) == n:
            return list(records.values())
    raise ValueError(f"captions: only {len(records)} distinct captions to draw, {n} wanted; ask for fewer")


def freeze_captions(records: Sequence[CaptionRecord], path: str | Path) -> str:
    """Write captions to a small parquet file with the columns TEXT, NSFW, ID; same captions, same bytes.

    Returns:
        The file's SHA-256.
    """
    rows = [asdict(record) for record in records]
    columns = {"TEXT": "text", "NSFW": "tag", "ID": "id"}
    table = pa.table(
        {name: pa.array([row[key] for row in rows], pa.string()) for name, key in columns.items()}
    )
    temporary = Path(f"{path}.new")
    pq.write_table(table, temporary)
    os.replace(temporary, path)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def read_frozen(path: str | Path) -> list[CaptionRecord]:
    """Read what `freeze_captions` wrote, in its order."""
    try:
        rows = pq.read_table(path, columns=["TEXT", "NSFW", "ID"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: is no frozen set of captions ({error})") from error
    return [CaptionRecord(row["TEXT"], row["NSFW"], row["ID"]) for row in rows]


def _open_files(
    source: str, caption_column: str | None, tag_column: str | None, skip_bad: bool
) -> list[Shard]:
    shards: list[Shard] = []
    for path in find_files(source):
        try:
            shards.append(open_shard(path, caption_column, tag_column))
        except ValueError as error:
            if not skip_bad:
                raise
            warnings.warn(f"captions: file skipped: {error}", stacklevel=3)
    if not any(shard.num_rows for shard in shards):
        raise ValueError(f"captions: {source} holds no caption; write at least one, or name another file")
    return shards


def _identity(source: str, settings: DrawSettings) -> dict[str, Any]:
    """Settings that a position depends on, JSON-able."""
    shown = {key: value for key, value in asdict(settings).items() if key not in ("filter", "skip_bad_files")}
    chosen = asdict(settings.filter)
    words = [sorted(chosen.pop("blocked")), sorted(chosen.pop("allowed"))]
    phrases = hashlib.sha256(repr(words).encode()).hexdigest()[:16]
    return {"source": source, **shown, "filter": {**chosen, "phrases": phrases}}
