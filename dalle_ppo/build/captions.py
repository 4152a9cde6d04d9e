"""Builds captions from settings: those to train on, and those held out."""

from dataclasses import replace

from dalle_ppo.captions.overview import SAMPLE_ROWS, as_text, look_at
from dalle_ppo.captions.reading import ReadSettings, spelled
from dalle_ppo.captions.source import (
    CaptionRecord,
    CaptionRequest,
    CaptionSource,
    Contents,
    distinct_captions,
    open_captions,
)
from dalle_ppo.captions.streams import DrawSettings, TooFewCaptions
from dalle_ppo.captions.text import CaptionFilter, read_phrases
from dalle_ppo.config.captions import READING, CaptionsConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.iconworld import stream as world_captions

TRAINING_STREAM, EVALUATION_STREAM, SAMPLES_STREAM, ANCHOR_STREAM, LABELS_STREAM = range(5)
"""No two of them draw the same captions, except by chance."""


def build_captions(config: Config, seed: int, stream: int, split: str | None) -> CaptionSource:
    """The caption source that the settings describe; only training captions are divided among ranks."""
    c = config.captions
    draw = replace(draw_settings(config), seed=seed, stream=stream, split=split)
    if split == "train":
        draw = replace(draw, rank=c.rank, world_size=c.world_size)
    shares = None if c.shares is None else {spelled(tag): share for tag, share in c.shares.items()}
    request = CaptionRequest(draw, shares, read_settings(c))
    return open_captions(c.source, request, given={"builtin": world_captions.load})


def draw_settings(config: Config) -> DrawSettings:
    """The settings of drawing; seed, stream and split keep their defaults."""
    c = config.captions
    chosen = CaptionFilter(
        min_chars=c.min_chars,
        max_chars=c.max_chars,
        min_latin_share=c.min_latin_share,
        blocked=read_phrases(c.blocklist) if c.blocklist else frozenset(),
        allowed=read_phrases(c.allowlist) if c.allowlist else frozenset(),
    )
    return DrawSettings(
        filter=chosen,
        clean=c.clean,
        drop_duplicates=c.drop_duplicates,
        skip_bad_files=c.skip_bad_files,
    )


def read_settings(captions: CaptionsConfig) -> ReadSettings:
    """The settings of reading files."""
    given = {name: getattr(captions, name) for name in READING}
    given["tag_map"] = {spelled(old): spelled(new) for old, new in (captions.tag_map or {}).items()} or None
    given["where"] = captions.where or None
    return ReadSettings(**given)


def say_what_is_there(contents: Contents | None, settings: DrawSettings) -> None:
    """Prints what the files of a source hold, as a run does when it starts; prints nothing without files.

    Only the first rows are looked at; over the network, only those of the first file.
    """
    if contents is not None:
        print(as_text(look_at(contents, settings, SAMPLE_ROWS)))


def evaluation_captions(
    config: Config, num: int | None = None, stream: int = EVALUATION_STREAM
) -> list[CaptionRecord]:
    """Distinct held-out captions, in the mix of tags of `evaluation.shares`.

    Raises:
        ValueError: the source does not hold enough of them, or of one tag.
    """
    shares = config.evaluation.shares or config.captions.shares
    # Duplicates are left out anyway; dropped by the streams, they do not change the mix.
    captions = replace(config.captions, shares=shares, drop_duplicates=True)
    config = replace(config, captions=captions)
    source = build_captions(config, config.evaluation.seed, stream, "heldout")
    try:
        return distinct_captions(source, num or config.evaluation.num_captions)
    except TooFewCaptions as error:
        needed = f"{num} held-out captions are needed and " if num else ""
        raise ValueError(
            f"{needed}evaluation.num_captions is {config.evaluation.num_captions}, but held-out captions are "
            f"only a tenth of {config.captions.source}: {error}"
        ) from None
