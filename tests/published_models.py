"""DALL·E mini and Mega in small: weight files as they are published, and the presets to read them with."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tiny_models import randomise

from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder
from dalle_ppo.models.dalle.presets import BART_PRESETS, VQGAN_PRESETS, BartConfig, VqganConfig
from dalle_ppo.models.dalle.tokenizer import train_bpe
from dalle_ppo.models.dalle.vqgan import VqganDecoder

TEXTS = ["a red boat on a blue sea", "an avocado armchair", "two boats and a tree in the sea"] * 3
VOCAB, MERGES = train_bpe(TEXTS, 40)
# The package's 256 image tokens, 64 text tokens and start token 16383 are constants of its code.
MINI = BartConfig(
    num_layers=2,
    num_heads=2,
    width=32,
    glu_width=40,
    text_vocab_count=len(VOCAB) + 3,
    image_vocab_count=16384,
    num_codes=16384,
)
MEGA = replace(MINI, num_layers=1, image_vocab_count=16415)
VQGAN = VqganConfig(
    channels=(8, 8, 8, 8, 16),
    num_codes=16384,
    code_width=4,
    blocks_per_level=1,
    norm_groups=4,
    attention=True,
    image_size=256,
)
# Quicker, where the package itself is not needed: 16 tokens of 64 codes, 64 pixels.
SMALL = replace(MINI, num_image_tokens=16, num_codes=64, image_vocab_count=70)
SMALL_VQGAN = replace(VQGAN, num_codes=64, image_size=64)
# The norms of the original models that have no scale, as the published files' description lists them.
NO_SCALE = ("pre_self_attn_layer_norm", "pre_encoder_attn_layer_norm", "glu.ln0", "glu.ln1", "final_ln")


@dataclass(frozen=True)
class Published:
    """Tensors as the files hold them, name to tensor."""

    encoder: dict
    decoder: dict
    detoker: dict


def reduce_presets(monkeypatch, mini: BartConfig = MINI, vqgan: VqganConfig = VQGAN) -> None:
    monkeypatch.setitem(BART_PRESETS, "mini", mini)
    monkeypatch.setitem(BART_PRESETS, "mega", MEGA)
    monkeypatch.setitem(VQGAN_PRESETS, "imagenet_f16_16384", vqgan)


def without_scales(tensors: dict) -> dict:
    """What is left of a state without the scales of `NO_SCALE`."""
    dropped = tuple(f"{norm}.weight" for norm in NO_SCALE)
    return {name: value for name, value in tensors.items() if not name.endswith(dropped)}


def random_published(
    config: BartConfig, seed: int = 0, vqgan: VqganConfig = VQGAN, dtype: torch.dtype = torch.float16
) -> Published:
    """Random weights of a model, as published: float16, and no scales where there are none."""
    networks = [BartEncoder(config), BartDecoder(config), VqganDecoder(vqgan)]
    states = [
        {name: value.to(dtype) for name, value in randomise(network, seed + i).state_dict().items()}
        for i, network in enumerate(networks)
    ]
    return Published(without_scales(states[0]), without_scales(states[1]), states[2])


LAYOUTS = {
    ("hub", "mini"): (
        "encoder_mini.pt", "decoder_mini.pt", "detoker.pt", "vocab_mini.json", "merges_mini.txt",
    ),
    ("hub", "mega"): ("encoder.pt", "decoder.pt", "detoker.pt", "vocab.json", "merges.txt"),
    **{
        ("disk", name): (
            f"dalle_bart_{name}/encoder.pt", f"dalle_bart_{name}/decoder.pt", "vqgan/detoker.pt",
            f"dalle_bart_{name}/vocab.json", f"dalle_bart_{name}/merges.txt",
        )
        for name in ("mini", "mega")
    },
}  # fmt: skip


def write_published(folder: Path, published: Published, layout: str = "hub", preset: str = "mini") -> Path:
    """Writes the five files of one of the two layouts; returns the folder."""
    paths = [folder / name for name in LAYOUTS[layout, preset]]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, tensors in zip(paths, (published.encoder, published.decoder, published.detoker), strict=False):
        torch.save(tensors, path)
    paths[3].write_text(json.dumps(VOCAB), encoding="utf8")
    paths[4].write_text("\n".join(["#version: 0.2", *MERGES, ""]), encoding="utf8")
    return folder
