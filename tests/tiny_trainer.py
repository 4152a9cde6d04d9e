"""A trainer whose networks are tiny, wired by `build_trainer` like a real one."""

import zlib
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from tiny_models import TINY, tiny_bart
from torch import Tensor

from dalle_ppo.base.team import ALONE, Team
from dalle_ppo.build import models
from dalle_ppo.build import rewards as build_rewards
from dalle_ppo.build import trainer as build
from dalle_ppo.config.actor import ActorConfig
from dalle_ppo.config.objective import find_objective
from dalle_ppo.config.rollout import RolloutConfig
from dalle_ppo.config.settings import OBJECTIVE_FIELD, Config
from dalle_ppo.config.update import UpdateConfig
from dalle_ppo.models.dalle.family import FrozenParts
from dalle_ppo.models.dalle.presets import BartConfig
from dalle_ppo.models.dalle.tokenizer import TextTokens
from dalle_ppo.models.heads.head_info import HeadInfo
from dalle_ppo.rewards import nsfw
from dalle_ppo.training.trainer import Trainer

SIZE = 16
# Large steps and no warm-up: two iterations change much.
TINY_CONFIG = Config(
    num_iterations=6,
    rollout=RolloutConfig(rollout_batch_size=SIZE),
    actor=ActorConfig(learning_rate=0.01, warmup_iterations=0, trainable="all", min_entropy=None),
    update=UpdateConfig(minibatch_size=8, microbatch_size=8),
)


def number_of(text: str) -> int:
    return zlib.crc32(text.encode())


class TinyTokenizer:
    """Words to numbers by their hash."""

    def encode(self, captions) -> TextTokens:
        rows = torch.ones(len(captions), TINY.num_text_tokens, dtype=torch.int64)
        for row, caption in zip(rows, captions, strict=True):
            words = [3 + number_of(word) % (TINY.text_vocab_count - 3) for word in caption.split()]
            codes = torch.tensor([0, *words[: TINY.num_text_tokens - 2], 2])
            row[: len(codes)] = codes
        return TextTokens(rows, 0)

    def unconditional(self) -> Tensor:
        return self.encode([""]).tokens[0]


class TinyVqgan(torch.nn.Module):
    """Every token is a grey pixel."""

    def __init__(self, num_codes: int = TINY.num_codes):
        super().__init__()
        self.num_codes = num_codes

    def decode_uint8(self, tokens: Tensor, microbatch_size: int | None = None) -> Tensor:
        grey = (tokens * 255 // (self.num_codes - 1)).to(torch.uint8)
        return grey[:, None, None, :].expand(-1, 3, 2, -1)


class TinyClip:
    """Embeds images by the brightness of their halves and ends, captions by their hash."""

    name, pretrained, same_as = "tiny", "test", None

    def narrowed(self, dtype: torch.dtype) -> "TinyClip":
        return self

    def embed_images(self, images: Tensor) -> Tensor:
        pixels = images[:, 0, 0, :] - 0.5
        half = pixels.shape[1] // 2
        first, second = pixels[:, :half].mean(1), pixels[:, half:].mean(1)
        columns = torch.stack([first, second, pixels[:, 0], pixels[:, -1]], 1)
        return torch.nn.functional.normalize(columns + 1e-3, dim=1)

    def embed_texts(self, captions) -> Tensor:
        numbers = torch.tensor([[number_of(f"{i} {text}") for i in range(4)] for text in captions])
        return torch.nn.functional.normalize(numbers / 2**31 - 1, dim=1)

    def logits(self, cosines: Tensor) -> Tensor:
        return 20 * cosines


class TinyDetector:
    """Bright first halves are unsafe."""

    info = HeadInfo("tiny", "test", 4, "probability")
    probes = path = None

    def to(self, device) -> "TinyDetector":
        return self

    def __call__(self, embeddings: Tensor) -> Tensor:
        return torch.sigmoid(6 * embeddings[:, 0] - 1)


def red(images: Tensor, captions) -> Tensor:
    """A reward of one's own."""
    return images[:, 0].mean(dim=(1, 2))


def not_a_number(images: Tensor, captions) -> Tensor:
    """One that is broken."""
    return torch.full((len(images),), torch.nan)


class NoWriter:
    """Takes the place of TensorBoard."""

    def write_histograms(self, *_) -> None:
        pass


def tiny_trainer(
    config: Config,
    run_dir: Path = Path("unused"),
    shape: BartConfig = TINY,
    team: Team = ALONE,
    dtype: torch.dtype = torch.float32,
    dry: bool = False,
) -> Trainer:
    """`build_trainer` with a random model, CLIP and detector instead of the built-in world's."""
    encoder, decoder = tiny_bart(shape, dtype=dtype)
    parts = FrozenParts(TinyTokenizer(), encoder, TinyVqgan(shape.num_codes))
    model = models.LoadedModel(decoder, decoder, parts, None, models.World(models.WEIGHTS))
    with (
        patch.object(build, "load_model", lambda *args: model),
        patch.object(build_rewards, "load_clip", lambda *args: TinyClip()),
        patch.object(nsfw, "load_detector", lambda *args: TinyDetector()),
    ):
        return build.build_trainer(config, run_dir, team, dry)


def changed(config: Config, settings: dict[str, object]) -> Config:
    """The settings with some replaced, by dotted name; "reward.terms.nsfw.weight" is that of a term."""
    groups: dict[str, dict] = {}
    terms = [dict(term) for term in config.reward.terms]
    for name, value in settings.items():
        group, _, leaf = name.rpartition(".")
        if group.startswith("reward.terms."):
            next(term for term in terms if term["name"] == group.rpartition(".")[2])[leaf] = value
            group, leaf, value = "reward", "terms", terms
        elif name == "reward.terms":
            value = terms = [*terms, *value]
        groups.setdefault(group, {})[leaf] = value
    top = groups.pop("", {})
    if "objective" in top:  # the other one's settings
        top[OBJECTIVE_FIELD] = find_objective(top["objective"]).settings(**groups.pop(top["objective"], {}))
    elif config.objective in groups:
        groups[OBJECTIVE_FIELD] = groups.pop(config.objective)
    nested = {group: replace(getattr(config, group), **leaves) for group, leaves in groups.items()}
    return replace(config, **top, **nested)
