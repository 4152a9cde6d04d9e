"""Small tables in LAION-400M's columns, and how tests draw captions from them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dalle_ppo.captions.reading import ReadSettings
from dalle_ppo.captions.source import CaptionRequest, open_captions
from dalle_ppo.captions.streams import CaptionRecord, DrawSettings

LAION_TAGS = ["UNLIKELY"] * 60 + ["UNSURE"] * 3 + ["NSFW"] + [None] * 4


def laion_table(num_rows, first=0):
    """Rows in LAION-400M's columns, the tag found from the text again: `caption 17 UNSURE`."""
    tags = [LAION_TAGS[i % len(LAION_TAGS)] for i in range(first, first + num_rows)]
    texts = [f"Caption {i} {tag}" for i, tag in enumerate(tags, first)]
    return pa.table(
        {
            "SAMPLE_ID": pa.array(np.arange(first, first + num_rows), pa.int64()),
            "URL": [f"http://x/{i}" for i in range(num_rows)],
            "TEXT": texts,
            "HEIGHT": [256] * num_rows,
            "WIDTH": [256] * num_rows,
            "LICENSE": ["?"] * num_rows,
            "NSFW": pa.array(tags, pa.string()),
            "similarity": [0.3] * num_rows,
        }
    )


def everything(**changes):
    return DrawSettings(**{"split": None, **changes})


def open_source(source, settings, shares=None, **reading):
    return open_captions(source, CaptionRequest(settings, shares, ReadSettings(**reading)))


def texts(records):
    return [record.text for record in records]


def read_frozen(path):
    """What `freeze_captions` wrote, in its order."""
    return [CaptionRecord(row["TEXT"], row["NSFW"], row["ID"]) for row in pq.read_table(path).to_pylist()]
