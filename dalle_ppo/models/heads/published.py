"""Score heads published as plain PyTorch or numpy files: how to recognise them, and which CLIP they read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dalle_ppo.models.heads.head_info import HeadInfo
from dalle_ppo.models.heads.head_layers import LayerSpec


@dataclass(frozen=True)
class LinearHead:
    """A chain of linear layers: their places in the `layers` Sequential, widths, and how many have a ReLU."""

    what: str
    places: tuple[int, ...]
    widths: tuple[int, ...]
    num_relu: int
    clip_model: str
    clip_pretrained: str
    licence: str

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state dict."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i, place in enumerate(self.places):
            shapes[f"layers.{place}.weight"] = (self.widths[i + 1], self.widths[i])
            shapes[f"layers.{place}.bias"] = (self.widths[i + 1],)
        return shapes


# Source: https://github.com/LAION-AI/CLIP-based-NSFW-Detector/blob/main/h14_nsfw_model.py
H14_NSFW = LinearHead(
    what="LAION's NSFW detector for ViT-H/14 (1024-1024-2048-1024-256-128-16-1)",
    places=(0, 3, 6, 9, 12, 15, 16),
    widths=(1024, 1024, 2048, 1024, 256, 128, 16, 1),
    num_relu=5,
    clip_model="ViT-H-14",
    clip_pretrained="laion2b_s32b_b79k",
    licence="MIT, Copyright 2022 Christoph Schuhmann (LAION-AI/CLIP-based-NSFW-Detector)",
)

# Source: https://github.com/christophschuhmann/improved-aesthetic-predictor/blob/main/simple_inference.py
AESTHETIC = LinearHead(
    what="LAION's aesthetic predictor for ViT-L/14 (768-1024-128-64-16-1)",
    places=(0, 2, 4, 6, 7),
    widths=(768, 1024, 128, 64, 16, 1),
    num_relu=0,
    clip_model="ViT-L-14",
    clip_pretrained="openai",
    licence="Apache-2.0 (christophschuhmann/improved-aesthetic-predictor)",
)

# Width of the embedding -> the CLIP of LAION's violence directions.
VIOLENCE_CLIPS = {768: "ViT-L-14", 512: "ViT-B-32"}


def read_torch_head(path: Path) -> tuple[list[LayerSpec], HeadInfo]:
    """Read a published `.pth` head, recognised by the names and shapes of its tensors.

    Raises:
        ValueError: it is not the state dict of a known head.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make its reader fail anywhere
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{path}: not a PyTorch state dict ({reason}); fetch it again") from None
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    head = next((head for head in (H14_NSFW, AESTHETIC) if head.shapes() == found), None)
    if head is None:
        known = " or ".join(head.what for head in (H14_NSFW, AESTHETIC))
        raise ValueError(f"{path}: its tensors are not those of {known}: {str(found)[:300]}")
    specs = []
    for i, place in enumerate(head.places):
        weight, bias = (tensors[f"layers.{place}.{name}"].float() for name in ("weight", "bias"))
        specs.append(LayerSpec("dense", {}, {"kernel": weight.T.contiguous(), "bias": bias}))
        if i < head.num_relu:
            specs.append(LayerSpec("activation", {"name": "relu"}))
    clip = (head.clip_model, head.clip_pretrained, head.widths[0])
    return specs, _info(path, *clip, licence=head.licence)


def read_violence_directions(path: Path, column: int | None = None) -> tuple[list[LayerSpec], HeadInfo]:
    """Read LAION's two violence directions: the score is how much closer the embedding is to the second.

    Args:
        path: the file.
        column: 0 or 1, the direction whose dot product is the score instead; None is their difference.

    Source: clip-retrieval calls an image violent if the second direction's dot product is the larger one,
    which is a score above 0 (https://github.com/rom1504/clip-retrieval, `get_violent_items`).

    Raises:
        ValueError: it is not an array of two directions in a known CLIP space, or has no such column.
    """
    try:
        directions = np.load(path, allow_pickle=False)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{path}: not a numpy array ({reason}); fetch it again") from None
    if directions.dtype.kind != "f":
        raise ValueError(f"{path}: holds {directions.dtype}, needs floating-point numbers; fetch it again")
    if directions.ndim != 2 or directions.shape[0] != 2 or directions.shape[1] not in VIOLENCE_CLIPS:
        widths = " or ".join(map(str, VIOLENCE_CLIPS))
        raise ValueError(f"{path}: has shape {directions.shape}, needs two directions of {widths} numbers")
    if column not in (None, 0, 1):
        raise ValueError(f"{path}: has no output column {column}; it has two directions, columns 0 and 1")
    other, violent = torch.from_numpy(directions.astype(np.float32))
    direction = violent - other if column is None else (other, violent)[column]
    dimension = directions.shape[1]
    licence = "MIT, Copyright 2022 Christoph Schuhmann (LAION-AI/CLIP-based-NSFW-Detector)"
    info = _info(path, VIOLENCE_CLIPS[dimension], "openai", dimension, licence=licence)
    return [LayerSpec("dense", {}, {"kernel": direction[:, None].contiguous()})], info


def _info(path: Path, clip_model: str, clip_pretrained: str, dimension: int, *, licence: str) -> HeadInfo:
    return HeadInfo(
        clip_model=clip_model,
        clip_pretrained=clip_pretrained,
        dimension=dimension,
        output="score",
        source=path.name,
        source_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        licence=licence,
    )
