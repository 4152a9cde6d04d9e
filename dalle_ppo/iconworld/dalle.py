"""Trains the built-in world's DALL·E on captions and the codes of their scenes."""

from collections.abc import Sequence
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
from .scenes import IMAGE_SIZE, PATCH, PlacedIcon, Scene, draw_batch
from .training import image_tensor
from .vqgan import TAG_SHARES

SINGLE_SIZE = 40
CENTRE, PAIR_HOME = (12, 12), (2, 18)  # where an icon of either size is encoded: x and y


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


class SceneTokens:
    """Tokens of scenes, laid out of the tokens of their icons.

    An encoder's codes depend on the whole image: the same boat gets other codes beside another icon,
    and a model that must guess such differences draws blobs. So each icon is encoded once for each
    background, alone, and a scene is its background's codes with its icons' codes on top. That works
    because icons stand on the grid of tokens.
    """

    def __init__(self, tokenizers: Tokenizers):
        self.tokenizers = tokenizers
        self._sheets: dict[tuple, torch.Tensor] = {}

    def __call__(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Codes, int64 [N, T], of scenes."""
        return torch.stack([self._compose(scene) for scene in scenes])

    def draw(self, scenes: Sequence[Scene]) -> np.ndarray:
        """What the VQGAN draws of those codes, uint8 [N, 64, 64, 3]."""
        return decode_tokens(self.tokenizers.decoder, self(scenes))

    def _compose(self, scene: Scene) -> torch.Tensor:
        grid = self._sheet((), scene.background).clone()
        for icon in scene.icons:
            # The sprite's margin reaches the next multiple of the patch on every side.
            top, left = icon.y // PATCH, icon.x // PATCH
            side = -(-(icon.y % PATCH + icon.size) // PATCH)
            home = CENTRE if icon.size == SINGLE_SIZE else PAIR_HOME
            sheet = self._sheet(((icon.kind, icon.color, *home, icon.size),), scene.background)
            row, column = home[1] // PATCH, home[0] // PATCH
            grid[top : top + side, left : left + side] = sheet[row : row + side, column : column + side]
        return grid.flatten()

    def _sheet(self, icons: tuple, background: str) -> torch.Tensor:
        key = (icons, background)
        if key not in self._sheets:
            scene = Scene(tuple(PlacedIcon(*icon) for icon in icons), background)
            side = IMAGE_SIZE // PATCH
            self._sheets[key] = image_tokens(self.tokenizers, draw_batch([scene])).view(side, side)
        return self._sheets[key]


def decode_tokens(decoder: VqganDecoder, tokens: torch.Tensor) -> np.ndarray:
    """Codes [N, T] to images, uint8 [N, 64, 64, 3]."""
    return decoder.decode_uint8(tokens).permute(0, 2, 3, 1).numpy()


def sample_token_pairs(
    tokenizers: Tokenizers, rng: np.random.Generator, num: int, tags: tuple[str, ...] = TAGS
) -> TokenPairs:
    """Training captions of the default mix (restricted to `tags`) and their scenes, as tokens."""
    shares = np.array([TAG_SHARES[TAGS.index(tag)] for tag in tags])
    chosen = rng.choice(tags, size=num, p=shares / shares.sum())
    captions = [sample_caption(rng, tag, "train") for tag in chosen]
    scenes = [sample_scene(rng, caption) for caption in captions]
    text = tokenizers.text.encode([caption.text for caption in captions]).tokens
    return TokenPairs(text, SceneTokens(tokenizers)(scenes))


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
        tokenizers: of scenes and captions.
        training: settings of supervised training; its seed is the data's, too.
        num_pairs: scenes to draw.
    """
    pairs = sample_token_pairs(tokenizers, np.random.default_rng([training.seed, 4]), num_pairs)
    steps = train_supervised(encoder, decoder, pairs, tokenizers.text.unconditional(), training)
    bar = tqdm(steps, total=training.num_steps, desc="DALL·E", mininterval=2.0)
    for step, numbers in enumerate(bar):
        if step % 20 == 0:
            bar.set_postfix(loss=f"{numbers['loss']:.4f}", lr=f"{numbers['learning_rate']:.2e}")
    encoder.eval()
    decoder.eval()
