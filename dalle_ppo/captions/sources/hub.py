"""`hub:OWNER/NAME`: data sets on the Hugging Face hub, read over the network or from the hub's cache."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_ppo.base.one_line import one_line
from dalle_ppo.captions.columns import TAG_COLUMNS
from dalle_ppo.captions.shards import ParquetShard
from dalle_ppo.captions.source import OTHER, CaptionRequest, CaptionSource

HUB_SECONDS = 120.0
BLOCK_BYTES = 4 << 20
LAION_SHARES = {"NSFW": 0.5, OTHER: 0.5}
SUCCESSORS = {
    "laion/laion400m": "laion/relaion400m",
    "laion/laion2b-en": "laion/relaion2B-en-research-safe",
    "laion/laion2b-multi": "laion/relaion2B-multi-research-safe",
    "laion/laion1b-nolang": "laion/relaion1b-nolang-research-safe",
}
"""Replacements for data sets that are gone, by their names in lower case.
Source: https://laion.ai/blog/relaion-5b/"""

T = TypeVar("T")


@dataclass(frozen=True)
class HubFiles:
    """The parquet files of a data set.

    Args:
        repo: its name, with the revision if one was asked for.
        names: names of the files within it, in alphabetical order; at least one.
        opener: returns a function that opens the file with a given name.
    """

    repo: str
    names: list[str]
    opener: Callable[[str], Callable[[], BinaryIO]]


def load(repo: str, request: CaptionRequest) -> CaptionSource:
    """Captions from a data set on the hub.

    Args:
        repo: as in `find_hub_files`.
        request: what is asked of the source; without shares, half of the captions are tagged NSFW if tags
            are read at all.

    Raises:
        ValueError: see `find_hub_files`; or the first file cannot be read.
    """
    files, errors = find_hub_files(repo), hub_errors()
    default_shares = LAION_SHARES
    try:
        lower = {name.lower() for name in read_columns(files)}
        column, thresholds = request.reading.tag_column, request.reading.tag_thresholds
        if thresholds:
            tagged = "NSFW" in thresholds  # without a column of scores, opening a file fails
        else:
            tagged = column or (column is None and lower & {name.lower() for name in TAG_COLUMNS})
        default_shares = LAION_SHARES if tagged else None
    except (*errors, pa.ArrowException) as error:
        if not request.settings.skip_bad_files:
            raise ValueError(f"captions: {files.names[0]} of {explain(repo, error)}") from error
    shards = [
        ParquetShard(f"{repo}/{file}", files.opener(file), request.reading, read_errors=errors)
        for file in files.names
    ]
    return request.draw_from(shards, default_shares=default_shares, remote=True)


def find_hub_files(repo: str) -> HubFiles:
    """Finds a data set on the hub and lists its parquet files; no file is opened.

    Files in the hub's local cache are read from there, all others over the network; with HF_HUB_OFFLINE, only
    the cache is used. The token comes from HF_TOKEN or `hf auth login`.

    Args:
        repo: such as `laion/relaion400m`, or `laion/relaion400m@main` with a revision.

    Raises:
        ValueError: it is missing, gated or renamed; or the hub refuses, does not answer within HUB_SECONDS,
            or the data set has no parquet file. The message says what to do.
    """
    from huggingface_hub import HfApi, HfFileSystem, constants, try_to_load_from_cache

    name, _, revision = repo.partition("@")

    def cached(file: str) -> str | None:
        found = try_to_load_from_cache(name, file, repo_type="dataset", revision=revision or None)
        return found if isinstance(found, str) else None

    try:
        # One worker: with more, listing leaves threads behind that keep the program from ending.
        files = HfFileSystem(max_workers=1)
        if constants.HF_HUB_OFFLINE:
            names = _list_cache(name, revision)
        else:
            gated = _check_name(HfApi(), name, revision)
            names = _list_hub(files, repo)
            if gated and not all(map(cached, names)):
                # The hub lists a gated data set for everybody and refuses only its files.
                within(HUB_SECONDS, lambda: HfApi().auth_check(name, repo_type="dataset"))
    except Renamed:
        raise
    except hub_errors() as error:
        raise ValueError(f"captions: {explain(repo, error)}") from error
    if not names:
        raise ValueError(
            f"captions: {repo} has no parquet file on the hub; name another data set or a folder"
        )

    def opener(file: str) -> Callable[[], BinaryIO]:
        path = cached(file)
        if path is not None:
            return lambda: pa.OSFile(path)
        return lambda: RemoteFile(lambda: files.open(f"datasets/{repo}/{file}", block_size=BLOCK_BYTES))

    return HubFiles(repo, names, opener)


class Renamed(ValueError):
    """Raised if the hub knows the data set under another name."""


def _check_name(api, name: str, revision: str) -> bool:
    """Whether a data set is gated.

    Raises:
        Renamed: the hub forwards the name to another one, which need not hold the same captions.
    """
    info = within(HUB_SECONDS, lambda: api.dataset_info(name, revision=revision or None))
    if info.id.lower() != name.lower():
        raise Renamed(f"captions: {name} is called {info.id} on the hub now; write hub:{info.id}")
    return bool(getattr(info, "gated", False))


def explain(repo: str, error: Exception) -> str:
    """One line, beginning with the data set: why the hub cannot be read, and what to do instead."""
    from huggingface_hub import errors

    name, _, revision = repo.partition("@")
    successor = SUCCESSORS.get(name.lower())
    folder = "give a folder with its parquet files"
    instead = f"use hub:{successor}, or {folder}" if successor else folder
    cause = _hub_error(error)
    if isinstance(cause, errors.GatedRepoError):
        page = f"https://huggingface.co/datasets/{name}"
        return f"{repo} is gated: accept its terms at {page} and set HF_TOKEN, or {folder}"
    if isinstance(cause, errors.DisabledRepoError):
        return f"{repo} has been disabled on the hub; {instead}"
    if isinstance(cause, errors.RepositoryNotFoundError):
        return f"{repo} is not on the hub, or hidden from the token in HF_TOKEN; check the name, or {instead}"
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"{repo} is not on the hub: there is no revision {revision}; name another, or leave it out"
    if isinstance(cause, errors.LocalEntryNotFoundError):
        return f"{repo} is not in the hub's cache, and HF_HUB_OFFLINE is set; unset it, or {folder}"
    return (
        f"{repo} could not be read from the hub ({one_line(error)}); check the network, accept the data "
        f"set's terms and set HF_TOKEN, or {instead}"
    )


def _hub_error(error: BaseException) -> BaseException:
    """The hub's own error, which may be the cause of the one that its file system raised."""
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    return cause or error


def read_columns(files: HubFiles) -> list[str]:
    """The columns of the first file; in all data sets we know, the others have the same."""
    file = files.opener(files.names[0])()
    try:
        return pq.read_schema(file).names
    finally:
        file.close()


def hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's client may raise; the bases cover the errors of whichever HTTP library it uses."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, *HfHubHTTPError.__bases__)


def within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call that may stall: its thread is abandoned if it takes too long.

    The hub's client has no time limit on listings, and its read timeouts start again with every byte.

    Raises:
        TimeoutError: there is no result after `seconds`.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    Thread(target=run, name="hub", daemon=True).start()
    wait([future], seconds)
    if not future.done():
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return future.result()


class RemoteFile:
    """A file on the hub; no read takes longer than HUB_SECONDS.

    Args:
        open_file: opens the file.
    """

    def __init__(self, open_file: Callable[[], BinaryIO]):
        self._file = within(HUB_SECONDS, open_file)

    def read(self, size: int = -1) -> bytes:
        return within(HUB_SECONDS, lambda: self._file.read(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed


def _list_hub(files, repo: str) -> list[str]:
    """Names of the parquet files within the data set, as the hub lists them."""
    folder = f"datasets/{repo}"
    found = within(HUB_SECONDS, lambda: files.find(folder))
    # Paths come with or without the revision that was requested.
    depth = len(Path(folder).parts)
    return sorted("/".join(Path(path).parts[depth:]) for path in found if path.endswith(".parquet"))


def _list_cache(name: str, revision: str) -> list[str]:
    """Names of the parquet files in the hub's local cache."""
    from huggingface_hub import snapshot_download

    folder = Path(
        snapshot_download(name, repo_type="dataset", revision=revision or None, local_files_only=True)
    )
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
