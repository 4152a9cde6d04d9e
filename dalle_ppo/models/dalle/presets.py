"""Sizes of every network the project builds, from the built-in world's to DALL·E Mega's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BartConfig:
    """Sizes of a DALL·E encoder-decoder.

    `image_vocab_count` is the `min-dalle` package's name: the embedding and the head have one row more.
    `num_codes` of those rows are drawable; the others are never sampled.
    """

    num_layers: int
    num_heads: int
    width: int
    glu_width: int
    text_vocab_count: int
    image_vocab_count: int
    num_codes: int
    num_image_tokens: int = 256
    num_text_tokens: int = 64
    num_encoder_layers: int | None = None

    @property
    def encoder_layers(self) -> int:
        """Layers of the text encoder: as many as the decoder has, unless set."""
        return self.num_layers if self.num_encoder_layers is None else self.num_encoder_layers

    @property
    def start_token(self) -> int:
        """The token before the first image token; the published models were trained with this one."""
        return self.image_vocab_count


@dataclass(frozen=True)
class VqganConfig:
    """Sizes of a VQGAN: `channels[i]` at resolution `image_size / 2**i`, codes on the coarsest grid."""

    channels: tuple[int, ...]
    num_codes: int
    code_width: int
    blocks_per_level: int
    norm_groups: int
    attention: bool
    image_size: int

    @property
    def grid_size(self) -> int:
        """Side of the token grid: 16 for the published model, 8 in the built-in world."""
        return self.image_size // 2 ** (len(self.channels) - 1)


# Sizes as the min-dalle package reads them from hub repository kuprel/min-dalle.
# Source: https://github.com/kuprel/min-dalle/blob/main/min_dalle/min_dalle.py
BART_PRESETS = {
    "iconworld": BartConfig(
        num_layers=3,
        num_encoder_layers=2,
        num_heads=6,
        width=192,
        glu_width=512,
        text_vocab_count=1024,
        image_vocab_count=1024,
        num_codes=1024,
        num_image_tokens=64,
    ),
    "mini": BartConfig(
        num_layers=12,
        num_heads=16,
        width=1024,
        glu_width=2730,
        text_vocab_count=50264,
        image_vocab_count=16384,
        num_codes=16384,
    ),
    "mega": BartConfig(
        num_layers=24,
        num_heads=32,
        width=2048,
        glu_width=4096,
        text_vocab_count=50272,
        image_vocab_count=16415,
        num_codes=16384,
    ),
}

VQGAN_PRESETS = {
    "iconworld": VqganConfig(
        channels=(24, 32, 64, 128),
        num_codes=1024,
        code_width=32,
        blocks_per_level=1,
        norm_groups=8,
        attention=False,
        image_size=64,
    ),
    "imagenet_f16_16384": VqganConfig(
        channels=(128, 128, 256, 256, 512),
        num_codes=16384,
        code_width=256,
        blocks_per_level=2,
        norm_groups=32,
        attention=True,
        image_size=256,
    ),
}
