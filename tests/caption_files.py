"""Small caption files of any format, and how tests read all of them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dalle_ppo.captions.overview import every_caption, look_at
from dalle_ppo.captions.reading import ReadSettings
from dalle_ppo.captions.source import CaptionRequest, open_captions
from dalle_ppo.captions.streams import DrawSettings

ALL = DrawSettings(split=None)


def captions_of(path: Path | str, **reading) -> list[tuple[str, str]]:
    """Every caption with its tag, in the order of the files."""
    contents = open_captions(str(path), CaptionRequest(ALL, reading=ReadSettings(**reading))).contents
    return list(every_caption(contents.shards, ALL))


def found(path: Path | str, **reading):
    contents = open_captions(str(path), CaptionRequest(ALL, reading=ReadSettings(**reading))).contents
    return look_at(contents, ALL)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_table(path: Path, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path
