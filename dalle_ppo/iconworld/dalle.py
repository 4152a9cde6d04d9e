"""Trains the built-in world's DALL·E on captions and the codes of their scenes."""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ..models.bart import BartDecoder, BartEncoder, init_bart
from ..models.presets import BartConfig
from ..models.tokenizer import TextTokenizer
from ..models.vqgan import VqganDecoder, VqganEncoder, encode_images
from ..supervised import SupervisedConfig, TokenPairs, train_supervised
from .captions import TAGS, sample_caption, sample_scene
from .scenes import draw_batch
from .training import image_tensor
from .vqgan import TAG_SHARES


@dataclass(frozen=True)
class Tokenizers:
    """What turns scenes and captions into tokens."""

    text: TextTokenizer
    encoder: VqganEncoder
    decoder: VqganDecoder


@torch.no_grad()
def image_tokens(tokenizers: Tokenizers, images: np.ndarray, microbatch_size: int = 64) -> torch.Tensor:
    """Codes, int64 [N, T], of scenes, uint8 [N, 64, 64, 3]."""
    parts = [
        encode_images(tokenizers.encoder, tokenizers.decoder, image_tensor(images[i : i + microbatch_size]))
        for i in range(0, len(images), microbatch_size)
    ]
    return torch.cat(parts)


def sample_token_pairs(
    tokenizers: Tokenizers, rng: np.random.Generator, num: int, tags: tuple[str, ...] = TAGS
) -> TokenPairs:
    """Training captions of the default mix (restricted to `tags`) and their scenes, as tokens."""
    shares = np.array([TAG_SHARES[TAGS.index(tag)] for tag in tags])
    chosen = rng.choice(tags, size=num, p=shares / shares.sum())
    captions = [sample_caption(rng, tag, "train") for tag in chosen]
    scenes = [sample_scene(rng, caption) for caption in captions]
    codes = []
    for start in tqdm(range(0, num, 1024), desc="scenes to codes", mininterval=2.0):
        codes.append(image_tokens(tokenizers, draw_batch(scenes[start : start + 1024])))
    text = tokenizers.text.encode([caption.text for caption in captions]).tokens
    return TokenPairs(text, torch.cat(codes))


def train_dalle(
    config: BartConfig, tokenizers: Tokenizers, seed: int, training: SupervisedConfig, num_pairs: int
) -> tuple[BartEncoder, BartDecoder]:
    """Trains the tiny DALL·E from nothing.

    Args:
        config: sizes.
        tokenizers: of scenes and captions.
        seed: of weights and data.
        training: settings of supervised training.
        num_pairs: scenes to draw and encode.

    Returns:
        Encoder and decoder, in eval mode.
    """
    torch.manual_seed(seed)
    pairs = sample_token_pairs(tokenizers, np.random.default_rng([seed, 4]), num_pairs)
    encoder, decoder = BartEncoder(config), BartDecoder(config)
    init_bart(encoder)
    init_bart(decoder)
    steps = train_supervised(encoder, decoder, pairs, tokenizers.text.unconditional(), training)
    bar = tqdm(steps, total=training.num_steps, desc="DALL·E", mininterval=2.0)
    for step, numbers in enumerate(bar):
        if step % 20 == 0:
            bar.set_postfix(loss=f"{numbers['loss']:.4f}", lr=f"{numbers['learning_rate']:.2e}")
    return encoder.eval(), decoder.eval()
