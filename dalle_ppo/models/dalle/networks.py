"""Networks by name, in a preset's sizes."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder
from dalle_ppo.models.dalle.presets import BART_PRESETS, VQGAN_PRESETS
from dalle_ppo.models.dalle.vqgan import VqganDecoder, VqganEncoder

NETWORKS: dict[str, Callable[[str], nn.Module]] = {
    "bart_encoder": lambda preset: BartEncoder(BART_PRESETS[preset]),
    "bart_decoder": lambda preset: BartDecoder(BART_PRESETS[preset]),
    "vqgan_encoder": lambda preset: VqganEncoder(VQGAN_PRESETS[preset]),
    "vqgan_decoder": lambda preset: VqganDecoder(VQGAN_PRESETS[preset]),
}


def load_network(folder: Path, name: str, preset: str) -> nn.Module:
    """A network with the weights of `folder`/`name`.safetensors, frozen, in float32 whatever the file holds.

    Args:
        folder: where the file is.
        name: a key of `NETWORKS`.
        preset: names its sizes, a key of the presets.
    """
    network = NETWORKS[name](preset)
    tensors = load_file(folder / f"{name}.safetensors")
    network.load_state_dict({key: value.float() for key, value in tensors.items()})
    return network.eval().requires_grad_(False)
