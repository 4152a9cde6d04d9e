"""Batches of captions in given shares of tags, from whichever source `captions.source` names.

Every source is a set of streams, one for each tag that has a share. A stream's order depends on its seed only
and its position is a few integers, so a resumed run draws exactly the captions that were due.
"""

import glob
import hashlib
import importlib
import math
import pkgutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.captions import sources
from dalle_ppo.captions.files import Shard
from dalle_ppo.captions.streams import (
    CaptionRecord,
    DrawSettings,
    ShardStream,
    Stream,
    select_all,
    select_other,
    select_tag,
)

OTHER = "OTHER"


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


@dataclass(frozen=True)
class CaptionRequest:
    """What is asked of a source of captions.

    settings: order, split, filters.
    shares: tag to share; the key OTHER stands for all tags not named. None: as the source sees fit.
    caption_column, tag_column: None looks for the usual names.
    """

    settings: DrawSettings
    shares: Mapping[str, float] | None = None
    caption_column: str | None = None
    tag_column: str | None = None

    def __post_init__(self) -> None:
        if self.shares is not None:
            check_shares(self.shares)

    def draw_from(
        self, shards: Sequence[Shard], default_shares: Mapping[str, float] | None = None
    ) -> CaptionSource:
        """The captions of some shards in the order, split and shares asked for.

        Args:
            shards: at least one; `TableShard` holds captions in memory.
            default_shares: where none are asked for; None takes the captions as they come.
        """
        names = [Path(shard.name).name for shard in shards]
        identity = self.identity(hashlib.sha256("\n".join(names).encode()).hexdigest()[:16])
        shares = self.shares or default_shares
        if shares is None:
            stream = ShardStream(shards, self.settings, select_all, None, "caption")
            return CaptionSource({"all": stream}, {"all": 1.0}, identity)
        named = [tag for tag in shares if tag != OTHER]
        streams = {
            tag: ShardStream(shards, self.settings, select_tag(tag), tag, f"caption tagged {tag}")
            for tag in named
        }
        if OTHER in shares:
            label = f"caption tagged other than {', '.join(named)}"
            streams[OTHER] = ShardStream(shards, self.settings, select_other(named), None, label)
        return CaptionSource(streams, shares, identity)

    def refuse_columns(self, source: str) -> None:
        """ValueError if columns are asked of a source without any: what would be ignored is refused."""
        if (self.caption_column, self.tag_column) != (None, None):
            raise ValueError(
                f"captions: {source} has no columns; leave captions.column and captions.tag_column out"
            )

    def identity(self, source: str) -> dict[str, Any]:
        """What a position depends on, JSON-able: the settings, and a name of the source."""
        left_out = ("filter", "skip_bad_files")
        shown = {key: value for key, value in asdict(self.settings).items() if key not in left_out}
        chosen = asdict(self.settings.filter)
        words = [sorted(chosen.pop("blocked")), sorted(chosen.pop("allowed"))]
        phrases = hashlib.sha256(repr(words).encode()).hexdigest()[:16]
        return {"source": source, **shown, "filter": {**chosen, "phrases": phrases}}


Load = Callable[[str, CaptionRequest], CaptionSource]


def open_captions(
    source: str, request: CaptionRequest, given: Mapping[str, Load] = MappingProxyType({})
) -> CaptionSource:
    """Open a source of captions.

    Args:
        source: `NAME:REST` with NAME.py in the folder `sources`, such as `hub:OWNER/NAME` or
            `prompts:counting`, a key of `given`, or a file, folder or glob.
        request: order, split, filters, shares, columns.
        given: name to `load` of sources that do not lie in that folder.

    Raises:
        ValueError: the source is unknown, cannot be read or holds no caption, the shares do not add up, or a
            setting does not apply to the source.
    """
    name, colon, rest = source.partition(":")
    if name in given:
        return given[name](rest, request)
    names = [module.name for module in pkgutil.iter_modules(sources.__path__)]
    if not colon or name not in names:
        if colon and name.isidentifier() and len(name) > 1 and not glob.glob(source):  # C: is a disk
            known = ", ".join(sorted({*given, *(f"{name}:" for name in names)}))
            raise ValueError(
                f"captions.source: {source} is no file, and there is no source {name}; use one of {known}, "
                "or name a file"
            )
        name, rest = "files", source
    return importlib.import_module(f"{sources.__name__}.{name}").load(rest, request)


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
    source = open_captions(path, CaptionRequest(DrawSettings(split=None)))
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


def _hash_file(path: Path) -> Path:
    return Path(f"{path}.sha256")
