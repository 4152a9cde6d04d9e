"""Loads the parts of the built-in world from their weight files."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file
from torch import nn

from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder
from dalle_ppo.models.dalle.presets import BART_PRESETS, VQGAN_PRESETS
from dalle_ppo.models.dalle.tokenizer import TextTokenizer
from dalle_ppo.models.dalle.vqgan import VqganDecoder, VqganEncoder

WEIGHTS = Path(__file__).parent / "weights"
PRESET = "iconworld"
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class World:
    """Where each part lies; `folder` is the shipped one or one that `iconworld.build` wrote."""

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

    def tokenizer(self) -> TextTokenizer:
        """The text tokenizer, with the world's own vocabulary."""
        return TextTokenizer.from_files(self.folder / "vocab.json", self.folder / "merges.txt")

    def vqgan_encoder(self) -> VqganEncoder:
        return self._load(VqganEncoder(VQGAN_PRESETS[PRESET]), "vqgan_encoder")

    def vqgan_decoder(self) -> VqganDecoder:
        return self._load(VqganDecoder(VQGAN_PRESETS[PRESET]), "vqgan_decoder")

    def bart_encoder(self) -> BartEncoder:
        return self._load(BartEncoder(BART_PRESETS[PRESET]), "bart_encoder")

    def bart_decoder(self) -> BartDecoder:
        return self._load(BartDecoder(BART_PRESETS[PRESET]), "bart_decoder")

    def _load(self, module: Module, name: str) -> Module:
        """Shipped weights are float16; everything computes in float32."""
        tensors = load_file(self.folder / f"{name}.safetensors")
        module.load_state_dict({key: value.float() for key, value in tensors.items()})
        return module.eval().requires_grad_(False)
