"""A file, folder or glob of captions: parquet, CSV, TSV, JSONL or text; `files:` may be left out."""

import glob
import warnings
from pathlib import Path

from dalle_ppo.captions.files import SUFFIXES, Shard, open_shard
from dalle_ppo.captions.source import CaptionRequest, CaptionSource


def load(path: str, request: CaptionRequest) -> CaptionSource:
    """Captions of local files.

    Args:
        path: of a file or folder, or a glob.
        request: what is asked of the source; without shares captions are taken as they come.

    Raises:
        ValueError: there is no such file, one cannot be read, or together they hold no caption.
    """
    return request.draw_from(_open_files(path, request))


def find_files(source: str) -> list[Path]:
    """The caption files a path, folder or glob names, in alphabetical order.

    Raises:
        ValueError: there is none, or a file has a kind that is not read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    elif path.exists():
        files = [path]
    else:
        files = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not files:
        raise ValueError(
            f"captions: {source} names no file with captions (read: {', '.join(SUFFIXES)}); a data set on "
            "the hub is written hub:OWNER/NAME"
        )
    for file in files:
        if file.suffix.lower() not in SUFFIXES:
            raise ValueError(f"captions: the kind of {file} is unknown; convert it to {', '.join(SUFFIXES)}")
    return files


def _open_files(source: str, request: CaptionRequest) -> list[Shard]:
    shards: list[Shard] = []
    for path in find_files(source):
        try:
            shards.append(open_shard(path, request.caption_column, request.tag_column))
        except ValueError as error:
            if not request.settings.skip_bad_files:
                raise
            warnings.warn(f"captions: file skipped: {error}", stacklevel=3)
    if not any(shard.num_rows for shard in shards):
        raise ValueError(f"captions: {source} holds no caption; write at least one, or name another file")
    return shards
