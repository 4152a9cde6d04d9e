"""Builds captions from settings: those to train on, and those held out."""

from dataclasses import replace

from dalle_ppo.captions.source import (
    CaptionRecord,
    CaptionRequest,
    CaptionSource,
    distinct_captions,
    open_captions,
)
from dalle_ppo.captions.streams import DrawSettings
from dalle_ppo.captions.text import CaptionFilter, read_phrases
from dalle_ppo.config.settings import Config
from dalle_ppo.iconworld import stream as world_captions

TRAINING_STREAM, EVALUATION_STREAM, SAMPLES_STREAM = 0, 1, 2


def build_captions(config: Config, seed: int, stream: int, split: str) -> CaptionSource:
    """The caption source of the settings; only training captions are divided among ranks."""
    c = config.captions
    rank, world_size = (c.rank, c.world_size) if split == "train" else (0, 1)
    chosen = CaptionFilter(
        min_chars=c.min_chars,
        max_chars=c.max_chars,
        min_latin_share=c.min_latin_share,
        blocked=read_phrases(c.blocklist) if c.blocklist else frozenset(),
        allowed=read_phrases(c.allowlist) if c.allowlist else frozenset(),
    )
    draw = DrawSettings(
        seed=seed,
        stream=stream,
        split=split,
        rank=rank,
        world_size=world_size,
        filter=chosen,
        clean=c.clean,
        drop_duplicates=c.drop_duplicates,
        skip_bad_files=c.skip_bad_files,
    )
    request = CaptionRequest(draw, c.shares, c.column, c.tag_column)
    return open_captions(c.source, request, given={"builtin": world_captions.load})


def evaluation_captions(
    config: Config, num: int | None = None, stream: int = EVALUATION_STREAM
) -> list[CaptionRecord]:
    """Distinct held-out captions, in the mix of tags of `evaluation.shares`.

    Raises:
        ValueError: if the source does not hold enough.
    """
    shares = config.evaluation.shares or config.captions.shares
    config = replace(config, captions=replace(config.captions, shares=shares))
    source = build_captions(config, config.evaluation.seed, stream, "heldout")
    try:
        return distinct_captions(source, num or config.evaluation.num_captions)
    except ValueError as error:
        raise ValueError(
            f"evaluation.num_captions is {config.evaluation.num_captions}, but of the held-out captions of "
            f"{config.captions.source}, a tenth of all, {error}; ask for fewer, or give more captions"
        ) from None
