"""A file, folder or glob of captions: parquet, CSV, TSV, JSON or text; `files:` may be left out."""

import warnings

from dalle_ppo.captions.local_files import open_files
from dalle_ppo.captions.source import CaptionRequest, CaptionSource


def load(path: str, request: CaptionRequest) -> CaptionSource:
    """Captions from local files.

    Args:
        path: a file, folder or glob.
        request: what is asked of the source; without shares, captions are taken as they come.

    Raises:
        ValueError: there is no such file, a file cannot be read, or the files contain no captions.
    """
    shards, left_out = open_files(path, request.reading, _warn if request.settings.skip_bad_files else None)
    return request.draw_from(shards, left_out=left_out)


def _warn(error: ValueError) -> None:
    warnings.warn(f"captions: file skipped: {error}", stacklevel=4)
