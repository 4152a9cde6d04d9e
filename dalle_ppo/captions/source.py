"""Batches of captions with given shares of each tag, from the source that `captions.source` names.

Every source is a set of streams, one for each tag that has a share. A stream's order depends only on its seed
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
from dalle_ppo.captions.local_files import LeftOut
from dalle_ppo.captions.reading import USUAL, ReadSettings
from dalle_ppo.captions.same_files import difference, files_of
from dalle_ppo.captions.shards import Shard
from dalle_ppo.captions.streams import (
    CaptionRecord,
    DrawSettings,
    ShardStream,
    Stream,
    TooFewCaptions,
    select_all,
    select_other,
    select_tag,
)

OTHER = "OTHER"
MOST_REPEATS = 1000
"""After so many in a row, a source without passes is taken to have no other captions."""
FROZEN_COLUMNS = {"TEXT": "text", "NSFW": "tag", "ID": "id"}
"""The columns of a frozen set of captions, by which field of the record each holds."""


@dataclass(frozen=True)
class Contents:
    """The files behind a source.

    Args:
        shards: what is read.
        left_out: files that are not read, and why.
        remote: whether opening a shard needs the network.
    """

    shards: Sequence[Shard]
    left_out: Sequence[LeftOut] = ()
    remote: bool = False


class CaptionSource:
    """Draws from one stream per tag so that each share is met to within one caption at any time.

    Args:
        streams: a stream for each key of `shares`.
        shares: share of each key; they add up to 1.
        identity: what a saved position belongs to; a position with another identity is refused.
        contents: the files behind the source; None if there are none.
    """

    def __init__(
        self,
        streams: Mapping[str, Stream],
        shares: Mapping[str, float],
        identity: Mapping[str, Any],
        contents: Contents | None = None,
    ):
        self.contents = contents
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
        return [record for _, record in self.next_with_keys(n)]

    def next_with_keys(self, n: int) -> list[tuple[str, CaptionRecord]]:
        """The next `n` captions, each with the key of `shares` that it was drawn for."""
        return [self._next_record() for _ in range(n)]

    def missing(self, drawn: Mapping[str, str], n: int) -> str | None:
        """Which of several shares of `n` distinct captions cannot be met because its captions have run out.

        Draws further from streams that fell short, so the source is not to be used afterwards.

        Args:
            drawn: for the id of each distinct caption drawn so far, the key of `shares`.
            n: how many were wanted.

        Returns:
            What is missing, for a message; None if nothing is.
        """
        counts = Counter(drawn.values())
        for key, share in self._shares.items() if len(self._shares) > 1 else ():
            count, needed = counts[key], math.floor(share * n + 1e-6)
            if count >= needed:
                continue
            # A file's order repeats after one pass. Captions made at random fall short by chance, but do not
            # end: some of twice as many are new.
            more = (self._streams[key].next_record().id for _ in range(2 * count + 100))
            if all(other in drawn for other in more):
                return f"there are only {count} distinct captions for {key}, whose share needs {needed}"
        return None

    @property
    def passes(self) -> int | None:
        """How many whole passes came before the last caption; None if captions are made up, without end."""
        passes = [getattr(stream, "passes", None) for stream in self._streams.values()]
        return None if None in passes else min(passes)

    def metrics(self) -> dict[str, float]:
        """Numbers to log: see `position_metrics`."""
        return position_metrics(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON types."""
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
        """Refuses a position from other captions or settings; the ValueError names the difference."""
        saved = state["identity"]
        changed = difference(saved, self._identity) if "files" in self._identity else None
        if changed is not None:
            raise ValueError(
                f"captions: these are not the files of the saved position ({changed}); resume with "
                "the same files, or start a new run"
            )
        for key, value in self._identity.items():
            if key != "files" and saved.get(key) != value:
                raise ValueError(
                    f"captions: {key} was {saved.get(key)!r} when the position was saved and is "
                    f"now {value!r}; resume with the same captions and settings"
                )

    def _next_record(self) -> tuple[str, CaptionRecord]:
        total = sum(self._drawn.values()) + 1
        key = max(self._shares, key=lambda k: self._shares[k] * total - self._drawn[k])
        record = self._streams[key].next_record()
        self._drawn[key] += 1
        self._tags[record.tag] += 1
        return key, record


def position_metrics(state: Mapping[str, Any]) -> dict[str, float]:
    """Counts and shares from the start of the run up to a position.

    Args:
        state: from `CaptionSource.state_dict`.

    Returns:
        `captions/share_TAG`: share of a tag, named as in the data, among the captions drawn;
        `captions/drawn`: captions drawn; for files also `captions/read`: rows read, including those with
        other tags, counted once for each tag that is drawn from; `captions/skipped_REASON`: captions dropped.
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
    shares: share of each tag; the key OTHER stands for all tags not named. None uses the source's default.
    reading: columns, tags and rows of files.
    """

    settings: DrawSettings
    shares: Mapping[str, float] | None = None
    reading: ReadSettings = USUAL

    def __post_init__(self) -> None:
        if self.shares is not None:
            check_shares(self.shares)

    def draw_from(
        self,
        shards: Sequence[Shard],
        default_shares: Mapping[str, float] | None = None,
        left_out: Sequence[LeftOut] = (),
        remote: bool = False,
    ) -> CaptionSource:
        """The captions of the shards, in the order, split and shares requested.

        Args:
            shards: at least one; `TableShard` holds captions in memory.
            default_shares: shares if none are requested; None takes the captions as they come.
            left_out: files that were found but are not read.
            remote: whether opening a shard needs the network.
        """
        contents = Contents(shards, left_out, remote)
        files = files_of(shards, remote)
        identity = {**self.identity(files["source"]), **files}
        shares = self.shares or default_shares
        if shares is None:
            stream = ShardStream(shards, self.settings, select_all, None, "caption")
            return CaptionSource({"all": stream}, {"all": 1.0}, identity, contents)
        named = [tag for tag in shares if tag != OTHER]
        streams = {
            tag: ShardStream(shards, self.settings, select_tag(tag), tag, f"caption tagged {tag}")
            for tag in named
        }
        if OTHER in shares:
            label = f"caption tagged other than {', '.join(named)}"
            streams[OTHER] = ShardStream(shards, self.settings, select_other(named), None, label)
        return CaptionSource(streams, shares, identity, contents)

    def refuse_columns(self, source: str) -> None:
        """Raises ValueError if columns are named for a source that has none, instead of ignoring them."""
        given = [name for name, value in asdict(self.reading).items() if value != getattr(ReadSettings, name)]
        if given:
            raise ValueError(
                f"captions: {source} has no columns; leave captions.{given[0]} out, or give another "
                "captions.source"
            )

    def identity(self, source: str) -> dict[str, Any]:
        """What a position depends on, as JSON types: the settings and a name for the source."""
        left_out = ("filter", "skip_bad_files")
        shown = {key: value for key, value in asdict(self.settings).items() if key not in left_out}
        chosen = asdict(self.settings.filter)
        words = [sorted(chosen.pop("blocked")), sorted(chosen.pop("allowed"))]
        phrases = hashlib.sha256(repr(words).encode()).hexdigest()[:16]
        read = {name: value for name, value in asdict(self.reading).items() if value is not None}
        return {"source": source, **shown, "reading": read, "filter": {**chosen, "phrases": phrases}}


Load = Callable[[str, CaptionRequest], CaptionSource]


def open_captions(
    source: str, request: CaptionRequest, given: Mapping[str, Load] = MappingProxyType({})
) -> CaptionSource:
    """Open a source of captions.

    Args:
        source: `NAME:REST` with NAME.py in the folder `sources`, such as `hub:OWNER/NAME` or
            `prompts:counting`, a key of `given`, or a file, folder or glob.
        request: order, split, filters, shares, columns.
        given: the `load` function of each source outside that folder, by name.

    Raises:
        ValueError: the source is unknown, cannot be read or contains no captions, the shares do not add up to
            1, or a setting does not apply to the source.
    """
    name, colon, rest = source.partition(":")
    if name in given:
        return given[name](rest, request)
    names = [module.name for module in pkgutil.iter_modules(sources.__path__)]
    if not colon or name not in names:
        if colon and name.isidentifier() and len(name) > 1 and not glob.glob(source):  # C: is a drive
            known = ", ".join(sorted({*given, *(f"{name}:" for name in names)}))
            raise ValueError(
                f"captions.source: {source} is not a file, and there is no source {name}; use one of "
                f"{known}, or name a file"
            )
        name, rest = "files", source
    return importlib.import_module(f"{sources.__name__}.{name}").load(rest, request)


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises ValueError unless the shares are at least 0 and add up to 1."""
    if any(not share >= 0 for share in shares.values()) or not math.isclose(
        sum(shares.values()), 1, abs_tol=1e-6
    ):
        listed = ", ".join(f"{tag}: {share}" for tag, share in shares.items()) or "none"
        raise ValueError(f"captions.shares: {listed}; each must be at least 0 and they must add up to 1")


def distinct_captions(source: CaptionSource, n: int) -> list[CaptionRecord]:
    """Draw `n` captions with distinct ids, as an evaluation set; `source` is not to be used afterwards.

    Raises:
        TooFewCaptions: the source, or one of its tags with a share, has fewer distinct captions.
        ValueError: a tag with a share has no caption at all, or a file cannot be read.
    """
    records: dict[str, CaptionRecord] = {}
    keys: dict[str, str] = {}
    for _ in range(20):
        for key, record in source.next_with_keys(n - len(records)):
            records.setdefault(record.id, record)
            keys.setdefault(record.id, key)
        if len(records) == n:
            break
    # Where a tag ran out, its place went to the others, or not even they were enough.
    missing = source.missing(keys, n)
    if missing:
        raise TooFewCaptions(f"{missing}; ask for fewer, change the shares, or give more captions")
    if len(records) < n:
        raise TooFewCaptions(
            f"there are only {len(records)} distinct captions, not {n}; ask for fewer, or give more captions"
        )
    return list(records.values())


def captions_of_file(path: str, wanted: int, reading: ReadSettings = USUAL) -> list[CaptionRecord]:
    """At most `wanted` distinct captions from a file, held out or not.

    Raises:
        ValueError: the file cannot be read or contains no captions.
    """
    return first_distinct(
        open_captions(path, CaptionRequest(DrawSettings(split=None), reading=reading)), wanted
    )


def first_distinct(source: CaptionSource, wanted: int) -> list[CaptionRecord]:
    """At most `wanted` distinct captions of one pass: all of them if there are no more.

    Raises:
        ValueError: a file cannot be read or contains no captions.
    """
    records: dict[str, CaptionRecord] = {}
    repeats = 0
    while len(records) < wanted:
        record = source.next_batch(1)[0]
        repeats = repeats + 1 if record.id in records else 0
        # A later pass may hold new captions, where one of a list is drawn in each.
        if source.passes or (source.passes is None and repeats >= MOST_REPEATS):
            break
        records.setdefault(record.id, record)
    return list(records.values())


def freeze_captions(records: Sequence[CaptionRecord], path: str | Path) -> str:
    """Write captions to a parquet file with columns TEXT, NSFW, ID; equal captions give equal bytes.

    Its SHA-256 goes into a file next to it, which ends in `.sha256` and which `sha256sum --check` reads.

    Returns:
        The SHA-256.
    """
    path = Path(path)
    rows = [asdict(record) for record in records]
    table = pa.table(
        {name: pa.array([row[key] for row in rows], pa.string()) for name, key in FROZEN_COLUMNS.items()}
    )

    def write(new: Path) -> None:
        pq.write_table(table, new)
        # If the process is killed after this, the captions have no hash rather than a wrong one.
        _hash_file(path).unlink(missing_ok=True)

    atomic_write(path, write)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    atomic_write(_hash_file(path), f"{digest}  {path.name}\n")
    return digest


def is_frozen(path: Path) -> bool:
    """Whether a file holds captions that `freeze_captions` wrote, by its columns."""
    try:
        return path.suffix == ".parquet" and pq.read_schema(path).names == list(FROZEN_COLUMNS)
    except (OSError, pa.ArrowException):
        return False  # whoever reads it says what is wrong


def _hash_file(path: Path) -> Path:
    return Path(f"{path}.sha256")
