"""Trains the built-in world's DALL·E on captions and the codes of their scenes."""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from dalle_ppo.iconworld.captions import TAGS, sample_caption, sample_scene
from dalle_ppo.iconworld.making.scene_tokens import SceneTokens
from dalle_ppo.iconworld.making.vqgan import TAG_SHARES
from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder, init_bart
from dalle_ppo.models.dalle.presets import BartConfig
from dalle_ppo.models.dalle.tokenizer import TextTokenizer
from dalle_ppo.models.dalle.vqgan import VqganDecoder, VqganEncoder
from dalle_ppo.training.supervised import SupervisedConfig, TokenPairs, train_supervised


@dataclass(frozen=True)
class Tokenizers:
    """What turns scenes and captions into tokens."""

    text: TextTokenizer
    encoder: VqganEncoder
    decoder: VqganDecoder


def sample_token_pairs(
    tokenizers: Tokenizers, rng: np.random.Generator, num: int, tags: tuple[str, ...] = TAGS
) -> TokenPairs:
    """Training captions in the default mix (restricted to `tags`) and their scenes, as tokens."""
    shares = np.array([TAG_SHARES[TAGS.index(tag)] for tag in tags])
    chosen = rng.choice(tags, size=num, p=shares / shares.sum())
    captions = [sample_caption(rng, tag, "train") for tag in chosen]
    scenes = [sample_scene(rng, caption) for caption in captions]
    text = tokenizers.text.encode([caption.text for caption in captions]).tokens
    return TokenPairs(text, SceneTokens(tokenizers.encoder, tokenizers.decoder)(scenes))


def fresh_bart(config: BartConfig, seed: int) -> tuple[BartEncoder, BartDecoder]:
    """Encoder and decoder with fresh weights."""
    torch.manual_seed(seed)
    encoder, decoder = BartEncoder(config), BartDecoder(config)
    init_bart(encoder)
    init_bart(decoder)
    return encoder, decoder


def train_dalle(
    encoder: BartEncoder,
    decoder: BartDecoder,
    tokenizers: Tokenizers,
    training: SupervisedConfig,
    num_pairs: int,
) -> None:
    """Trains the tiny DALL·E in place.

    Args:
        encoder: text encoder.
        decoder: image-token decoder.
        tokenizers: tokenizers of captions and scenes.
        training: settings of supervised training; its seed is also used for the data.
        num_pairs: number of scenes to draw.
    """
    pairs = sample_token_pairs(tokenizers, np.random.default_rng([training.seed, 4]), num_pairs)
    steps = train_supervised(encoder, decoder, pairs, tokenizers.text.unconditional(), training)
    bar = tqdm(steps, total=training.num_steps, desc="DALL·E", mininterval=2.0)
    for step, numbers in enumerate(bar):
        if step % 20 == 0:
            bar.set_postfix(loss=f"{numbers['loss']:.4f}", lr=f"{numbers['learning_rate']:.2e}")
    encoder.eval()
    decoder.eval()
