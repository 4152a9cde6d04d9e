"""Batches of captions in given shares of tags: LAION-400M, own files, prompt sets, the built-in world.

Every source is a set of streams, one for each tag that has a share. A stream's order depends on its seed only
and its position is a few integers, so a resumed run draws exactly the captions that were due.
"""

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.captions import prompt_sets
from dalle_ppo.captions.files import Shard, TableShard, find_files, one_line, open_shard
from dalle_ppo.captions.hub import hub_shards
from dalle_ppo.captions.streams import (
    CaptionRecord,
    DrawSettings,
    ShardStream,
    Stream,
    WorldStream,
    select_all,
    select_other,
    select_tag,
)
from dalle_ppo.captions.text import CaptionFilter

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

    def metrics(self) -> dict[str, float]:
        """Numbers to log: see `position_metrics`."""
        return position_metrics(self.state_dict())

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
            ValueError: see `check_position`.
        """
        self.check_position(state)
        self._drawn = dict(state["drawn"])
        self._tags = Counter(state["tags"])
        for key, stream in self._streams.items():
            stream.load_state_dict(state["streams"][key])

    def check_position(self, state: Mapping[str, Any]) -> None:
        """ValueError, naming the difference, for a position of other captions or settings."""
        for key, value in self._identity.items():
            if state["identity"].get(key) != value:
                raise ValueError(
                    f"captions: {key} was {state['identity'].get(key)!r} when the position was saved and is "
                    f"now {value!r}; resume with the same captions and settings"
                )

    def _next_record(self) -> CaptionRecord:
        total = sum(self._drawn.values()) + 1
        key = max(self._shares, key=lambda k: self._shares[k] * total - self._drawn[k])
        record = self._streams[key].next_record()
        self._drawn[key] += 1
        self._tags[record.tag] += 1
        return record


def position_metrics(state: Mapping[str, Any]) -> dict[str, float]:
    """What a position says of the way to it, from the run's beginning on.

    Args:
        state: of `CaptionSource.state_dict`.

    Returns:
        `captions/share_TAG`: share of a tag, as the data name it, among the captions drawn;
        `captions/drawn`: how many; and for files `captions/read`: rows read, those of other tags included
        and once for each tag that is drawn from, `captions/skipped_REASON`: captions dropped.
    """
    counts = sum((Counter(stream["counts"]) for stream in state["streams"].values()), Counter())
    metrics = {f"captions/share_{tag}": n / counts["drawn"] for tag, n in sorted(state["tags"].items())}
    for key, n in sorted(counts.items()):
        name = key if key in ("drawn", "read") else f"skipped_{key.replace(' ', '_')}"
        metrics[f"captions/{name}"] = n
    return metrics


def open_captions(
    source: str,
    settings: DrawSettings,
    shares: Mapping[str, float] | None = None,
    *,
    caption_column: str | None = None,
    tag_column: str | None = None,
) -> CaptionSource:
    """Open a source of captions.

    Args:
        source: `builtin` (the built-in world), `hub:OWNER/NAME` (a data set on the hub), `prompts:NAME` (one
            of `prompt_sets`), or a file, folder or glob of parquet, CSV, TSV, JSONL or text files.
        settings: order, split, filters.
        shares: tag to share; the key OTHER stands for all tags not named. None: the mix of the built-in
            world, half NSFW for `hub:`, and the captions as they come for everything else.
        caption_column, tag_column: None looks for the usual names.

    Raises:
        ValueError: the source cannot be read or holds no caption, the shares do not add up, or a setting
            does not apply to the source.
    """
    columns = caption_column, tag_column
    if source == "builtin":
        _refuse_settings_of_files(settings, columns)
        shares = shares or WORLD_SHARES
        check_shares(shares)
        streams = {tag: WorldStream(tag, settings) for tag in shares}
        return CaptionSource(streams, shares, _identity(source, settings))
    if source.startswith("hub:"):
        shards = hub_shards(source.removeprefix("hub:"), *columns)
        shares = shares or LAION_SHARES
    elif source.startswith("prompts:"):
        _refuse_columns(source, columns)
        shards = [TableShard(source, prompt_sets.prompt_set(source.removeprefix("prompts:")))]
    else:
        shards = _open_files(source, *columns, settings.skip_bad_files)
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
        raise ValueError(f"captions.shares: {listed}; each must be at least 0 and together they must be 1")


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


def captions_of_file(path: str, wanted: int) -> list[CaptionRecord]:
    """Distinct captions of a file, held out or not; at most `wanted`.

    Raises:
        ValueError: the file cannot be read or holds no caption.
    """
    source = open_captions(path, DrawSettings(split=None))
    records: dict[str, CaptionRecord] = {}
    fruitless = 0
    while len(records) < wanted and fruitless < 3:
        before = len(records)
        for record in source.next_batch(min(256, wanted - before)):
            records.setdefault(record.id, record)
        fruitless = fruitless + 1 if len(records) == before else 0
    return list(records.values())


def freeze_captions(records: Sequence[CaptionRecord], path: str | Path) -> str:
    """Write captions to a small parquet file with the columns TEXT, NSFW, ID; same captions, same bytes.

    Its SHA-256 is written beside it, in a file that ends in `.sha256`, as `sha256sum --check` reads it.

    Returns:
        The SHA-256.
    """
    path = Path(path)
    rows = [asdict(record) for record in records]
    columns = {"TEXT": "text", "NSFW": "tag", "ID": "id"}
    table = pa.table(
        {name: pa.array([row[key] for row in rows], pa.string()) for name, key in columns.items()}
    )

    def write(new: Path) -> None:
        pq.write_table(table, new)
        _hash_file(path).unlink(
            missing_ok=True
        )  # a kill after this leaves captions without a hash, not a wrong one

    atomic_write(path, write)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    atomic_write(_hash_file(path), f"{digest}  {path.name}\n")
    return digest


def read_frozen(path: str | Path) -> list[CaptionRecord]:
    """Read what `freeze_captions` wrote, in its order.

    Raises:
        ValueError: the file cannot be read, or it is not the one whose hash lies beside it.
    """
    path = Path(path)
    try:
        rows = pq.read_table(path, columns=["TEXT", "NSFW", "ID"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: is no frozen set of captions ({one_line(error)})") from error
    if _hash_file(path).exists():
        expected = _hash_file(path).read_text(encoding="utf-8").split()[0]
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ValueError(f"{path}: has changed since it was frozen; put it back, or delete {path}.sha256")
    return [CaptionRecord(row["TEXT"], row["NSFW"], row["ID"]) for row in rows]


def _hash_file(path: Path) -> Path:
    return Path(f"{path}.sha256")


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


def _refuse_settings_of_files(settings: DrawSettings, columns: tuple[str | None, str | None]) -> None:
    """What would be ignored is refused."""
    _refuse_columns("builtin", columns)
    if settings.filter != CaptionFilter() or settings.clean:
        raise ValueError(
            "captions: the built-in world's captions are neither cleaned nor filtered; leave captions.clean, "
            "the lengths, min_latin_share and the lists at their defaults, or give another captions.source"
        )


def _refuse_columns(source: str, columns: tuple[str | None, str | None]) -> None:
    if columns != (None, None):
        raise ValueError(
            f"captions: {source} has no columns; leave captions.column and captions.tag_column out"
        )


def _identity(source: str, settings: DrawSettings) -> dict[str, Any]:
    """Settings that a position depends on, JSON-able."""
    shown = {key: value for key, value in asdict(settings).items() if key not in ("filter", "skip_bad_files")}
    chosen = asdict(settings.filter)
    words = [sorted(chosen.pop("blocked")), sorted(chosen.pop("allowed"))]
    phrases = hashlib.sha256(repr(words).encode()).hexdigest()[:16]
    return {"source": source, **shown, "filter": {**chosen, "phrases": phrases}}
