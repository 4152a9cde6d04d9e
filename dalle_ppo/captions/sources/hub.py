"""`hub:OWNER/NAME`: data sets on the Hugging Face hub, read over the network or from the hub's cache."""

from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import BinaryIO, TypeVar

import pyarrow as pa

from dalle_ppo.captions.reading import ReadSettings
from dalle_ppo.captions.shards import ParquetShard, Shard, one_line
from dalle_ppo.captions.source import OTHER, CaptionRequest, CaptionSource

HUB_SECONDS = 120.0
BLOCK_BYTES = 4 << 20
LAION_SHARES = {"NSFW": 0.5, OTHER: 0.5}

T = TypeVar("T")


def load(repo: str, request: CaptionRequest) -> CaptionSource:
    """Captions from a data set on the hub.

    Args:
        repo: as in `hub_shards`.
        request: what is asked of the source; without shares, half of the captions are tagged NSFW.

    Raises:
        ValueError: see `hub_shards`.
    """
    return request.draw_from(hub_shards(repo, request.reading), default_shares=LAION_SHARES, remote=True)


def hub_shards(repo: str, reading: ReadSettings) -> list[Shard]:
    """The parquet files of a data set on the hub, in alphabetical order.

    Files in the hub's local cache are read from there, all others over the network; with HF_HUB_OFFLINE, only
    the cache is used. The token comes from HF_TOKEN or `hf auth login`.

    Args:
        repo: such as `laion/laion400m`, or `laion/laion400m@main` with a revision.
        reading: columns, tags and rows.

    Raises:
        ValueError: the hub refuses, does not answer within HUB_SECONDS, or has no parquet file there.
    """
    from huggingface_hub import HfFileSystem, constants, try_to_load_from_cache

    name, _, revision = repo.partition("@")
    errors = hub_errors()
    try:
        # One worker: with more, listing leaves threads behind that keep the program from ending.
        files = HfFileSystem(max_workers=1)
        names = _list_cache(name, revision) if constants.HF_HUB_OFFLINE else _list_hub(files, repo)
    except errors as error:
        raise ValueError(
            f"captions: could not list {repo} on the hub ({one_line(error)}); check the network, accept "
            "the data set's terms and set HF_TOKEN, or give a folder with its parquet files"
        ) from error
    if not names:
        raise ValueError(
            f"captions: {repo} has no parquet file on the hub; give another data set or a folder"
        )

    def opener(file: str) -> Callable[[], BinaryIO]:
        cached = try_to_load_from_cache(name, file, repo_type="dataset", revision=revision or None)
        if isinstance(cached, str):
            return lambda: pa.OSFile(cached)
        return lambda: RemoteFile(lambda: files.open(f"datasets/{repo}/{file}", block_size=BLOCK_BYTES))

    return [ParquetShard(f"{repo}/{file}", opener(file), reading, read_errors=errors) for file in names]


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
