"""Loads the parts of the built-in world from their weight files."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dalle_ppo.models.dalle.networks import load_network
from dalle_ppo.models.dalle.tokenizer import TextTokenizer

WEIGHTS = Path(__file__).parent / "weights"
PRESET = "iconworld"


@dataclass(frozen=True)
class World:
    """The files of a world; `folder` is the shipped one or one that `iconworld.build` wrote."""

    folder: Path = WEIGHTS

    @property
    def clip(self) -> Path:
        return self.folder / "iconworld_clip"

    @property
    def detector(self) -> Path:
        return self.folder / "detector.safetensors"

    @property
    def judge(self) -> Path:
        return self.folder / "judge.safetensors"

    @property
    def rater(self) -> Path:
        return self.folder / "rater.safetensors"

    def tokenizer(self) -> TextTokenizer:
        """The text tokenizer, with the world's own vocabulary."""
        return TextTokenizer.from_files(self.folder / "vocab.json", self.folder / "merges.txt")

    def vqgan_encoder(self) -> nn.Module:
        return load_network(self.folder, "vqgan_encoder", PRESET)

    def vqgan_decoder(self) -> nn.Module:
        return load_network(self.folder, "vqgan_decoder", PRESET)

    def bart_encoder(self) -> nn.Module:
        return load_network(self.folder, "bart_encoder", PRESET)

    def bart_decoder(self) -> nn.Module:
        return load_network(self.folder, "bart_decoder", PRESET)
