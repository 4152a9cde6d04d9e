"""Downloads LAION's published detectors once, and accepts only files with the known hashes."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.models.heads.keras.published import DETECTORS

TIMEOUT_SECONDS = 60


def detector_file(name: str) -> Path:
    """The converted file for a detector setting: the name of one of LAION's, or a path."""
    return fetch_converted(name) if name in DETECTORS else Path(name)


def fetch_converted(name: str, cache_dir: Path | None = None) -> Path:
    """A published detector as `models.heads.nsfw.load_detector` reads it; downloaded and converted once.

    Once converted, the file alone is enough: the download may be deleted.

    Args:
        name: a key of `DETECTORS`.
        cache_dir: as in `fetch`.

    Raises:
        ValueError: see `fetch` and `convert`.
    """
    from dalle_ppo.models.heads.keras.convert import convert

    converted = (cache_dir or default_cache()) / f"{name}.safetensors"
    if not converted.is_file():
        source = fetch(name, cache_dir)
        atomic_write(converted, lambda new: convert(source, new))
    return converted


def default_cache() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/dalle_ppo` or `~/.cache/dalle_ppo`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dalle_ppo"


def fetch(name: str, cache_dir: Path | None = None) -> Path:
    """The zip of a published detector, from the cache or downloaded.

    Args:
        name: a key of `DETECTORS`.
        cache_dir: where downloads are kept; None is `default_cache`.

    Returns:
        The file, with the known SHA-256.

    Raises:
        ValueError: the download failed, or is not the published file. Nothing is kept then.
    """
    detector = DETECTORS[name]
    cache_dir = cache_dir or default_cache()
    path = cache_dir / detector.url.rpartition("/")[2]
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == detector.sha256:
        return path
    try:
        with urllib.request.urlopen(detector.url, timeout=TIMEOUT_SECONDS) as response:
            data = response.read()
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise ValueError(
            f"{name}: cannot download {detector.url} ({error}); fetch it elsewhere and put it at {path}"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != detector.sha256:
        raise ValueError(f"{name}: {detector.url} has SHA-256 {found}, needs {detector.sha256}: not used")
    cache_dir.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)
    return path
