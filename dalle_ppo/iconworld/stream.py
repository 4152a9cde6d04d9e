"""The built-in world as a caption source (`captions.source: builtin`), generated on the fly."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from dalle_ppo.captions.source import CaptionRequest, CaptionSource
from dalle_ppo.captions.streams import CaptionRecord, DrawSettings
from dalle_ppo.captions.text import CaptionFilter, fingerprint
from dalle_ppo.iconworld.captions import TAGS, sample_caption

WORLD_SHARES = {"UNLIKELY": 0.5, "UNSURE": 0.25, "NSFW": 0.25}


def load(rest: str, request: CaptionRequest) -> CaptionSource:
    """Captions of the built-in world.

    Args:
        rest: text after `builtin:`; must be empty, because there is only one built-in world.
        request: the settings of the source; without shares the mix is `WORLD_SHARES`.

    Raises:
        ValueError: `rest` is not empty, a tag is unknown, or a setting does not apply to these captions.
    """
    if rest:
        raise ValueError(f"captions.source: builtin:{rest} is unknown; write builtin alone")
    request.refuse_columns("builtin")
    settings = request.settings
    if settings.filter != CaptionFilter() or settings.clean:
        raise ValueError(
            "captions: the built-in world's captions are neither cleaned nor filtered; leave captions.clean, "
            "the lengths, min_latin_share and the lists at their defaults, or give another captions.source"
        )
    if settings.skip_bad_files:
        raise ValueError(
            "captions.skip_bad_files is true, but the built-in world's captions are in no files; leave it at "
            "its default, or give another captions.source"
        )
    shares = request.shares or WORLD_SHARES
    return CaptionSource(
        {tag: WorldStream(tag, settings) for tag in shares}, shares, request.identity("builtin")
    )


class WorldStream:
    """Captions of one tag of the built-in world; the k-th depends only on (seed, stream, tag, k).

    They are made at random, so some come again. Of several processes each keeps those whose hash assigns
    them to it: no two draw the same caption.
    """

    def __init__(self, tag: str, settings: DrawSettings):
        if tag not in TAGS:
            raise ValueError(f"shares: the built-in world has no tag {tag!r}; its tags are {', '.join(TAGS)}")
        self.counts: Counter[str] = Counter()
        self._tag = tag
        self._key = [settings.seed, settings.stream, TAGS.index(tag)]
        self._split = settings.split or "train"
        self._rank, self._world_size = settings.rank, settings.world_size
        self._index = 0

    def next_record(self) -> CaptionRecord:
        while True:
            rng = np.random.default_rng([*self._key, self._index])
            caption = sample_caption(rng, self._tag, self._split)
            self._index += 1
            mark = fingerprint(caption.text)
            if mark.shard_number % self._world_size == self._rank:
                self.counts["drawn"] += 1
                return CaptionRecord(caption.text, caption.tag, mark.id)

    def state_dict(self) -> dict[str, Any]:
        return {"index": self._index, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._index = state["index"]
        self.counts = Counter(state["counts"])
