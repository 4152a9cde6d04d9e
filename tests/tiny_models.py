"""Networks small enough for tests, with weights large enough that every part of them matters."""

import torch

from dalle_ppo.models.dalle.bart import PAD_TOKEN, BartDecoder, BartEncoder
from dalle_ppo.models.dalle.presets import BartConfig
from dalle_ppo.models.dalle.sampling import Prompts, encode_prompts
from dalle_ppo.models.policy_settings import PolicySettings

# As in DALL·E Mega, the head has rows that are never drawn.
TINY = BartConfig(
    num_layers=2,
    num_heads=2,
    width=16,
    glu_width=24,
    text_vocab_count=20,
    image_vocab_count=14,
    num_codes=12,
    num_image_tokens=8,
    num_text_tokens=10,
)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fills every parameter, norms included: with gains of 1 and biases of 0 mixed-up names go unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(module.state_dict().items()):
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            if value.ndim > 1:
                scale = 0.5 if "embed" in name else value[0].numel() ** -0.5
                value.copy_(noise * scale)
            else:
                value.copy_(noise * 0.3 + (1.0 if name.endswith("weight") else 0.0))
    return module


def tiny_bart(
    config: BartConfig = TINY, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[BartEncoder, BartDecoder]:
    """A random text encoder and image-token decoder."""
    encoder, decoder = BartEncoder(config).to(dtype), BartDecoder(config).to(dtype)
    return randomise(encoder, seed).requires_grad_(False), randomise(decoder, seed + 1)


def captions(*lengths: int, config: BartConfig = TINY, seed: int = 3) -> torch.Tensor:
    """Random captions of these lengths, `<s>` and `</s>` counted, padded; int64 [M, S]."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((len(lengths), config.num_text_tokens), PAD_TOKEN)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(3, config.text_vocab_count, (length,), generator=generator)
        row[0], row[length - 1] = 0, 2
    return tokens


def image_tokens(count: int, config: BartConfig = TINY, seed: int = 5) -> torch.Tensor:
    """Random codes, int64 [N, T]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.num_codes, (count, config.num_image_tokens), generator=generator)


def tiny_prompts(
    encoder: BartEncoder, settings: PolicySettings, *lengths: int, config: BartConfig = TINY
) -> Prompts:
    """Encoded captions of these lengths and, with guidance, the unconditional one."""
    return encode_prompts(encoder, captions(*lengths, config=config), captions(2, config=config)[0], settings)


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max |difference| / max |reference|."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
