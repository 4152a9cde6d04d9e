"""A file, folder or glob of captions: parquet, CSV, TSV, JSONL or text; `files:` may be left out."""

import glob
import warnings
from pathlib import Path

from dalle_ppo.captions.files import SUFFIXES, Shard, open_shard
from dalle_ppo.captions.source import CaptionRequest, CaptionSource


def load(path: str, request: CaptionRequest) -> CaptionSource:
    """Captions from local files.

    Args:
        path: a file, folder or glob.
        request: what is asked of the source; without shares, captions are taken as they come.

    Raises:
        ValueError: there is no such file, a file cannot be read, or the files contain no captions.
    """
    return request.draw_from(_open_files(path, request))


def find_files(source: str) -> list[Path]:
    """The caption files a path, folder or glob names, in alphabetical order.

    Raises:
        ValueError: there is no such file, or the format of a file is not supported.
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
            f"captions: there are no caption files at {source} (supported: {', '.join(SUFFIXES)}); write a "
            "data set on the hub as hub:OWNER/NAME"
        )
    for file in files:
        if file.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"captions: the format of {file} is not supported; convert it to one of {', '.join(SUFFIXES)}"
            )
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
        raise ValueError(f"captions: {source} contains no captions; add at least one, or name another file")
    return shards
