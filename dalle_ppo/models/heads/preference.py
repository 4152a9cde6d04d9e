"""Reward models: an ensemble of heads that scores how well people would like an image for its caption."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dalle_ppo.models.heads.head_info import HeadInfo
from dalle_ppo.models.heads.head_layers import build_layers
from dalle_ppo.models.heads.nsfw import read_head, read_probes

OUTPUT = "preference"
"""`HeadInfo.output` of a reward model."""


class PreferenceHead(nn.Module):
    """Maps embeddings of image and caption to one score for each member of an ensemble.

    Args:
        layers: from the features to the scores.
        info: its metadata; `dimension` is the CLIP's, a third of the features.
        probes: its CLIP's embeddings of the drawings in `probes.py`.
        path: the file it came from.
    """

    def __init__(self, layers: nn.Sequential, info: HeadInfo, probes: Tensor | None, path: str | Path):
        super().__init__()
        self.layers, self.info, self.probes, self.path = layers, info, probes, path
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Scores images for their captions.

        Args:
            images, texts: L2-normalised embeddings, float [B, D], of the images and of their captions.

        Returns:
            Mean and standard deviation of the members' scores, float32 [B], in nats: a difference of 1
            between two images of a caption means odds of e to 1. The deviation of one member is 0.
        """
        with torch.autocast(images.device.type, enabled=False):
            scores = self.layers(features(images, texts))
        spread = scores.std(dim=1) if scores.shape[1] > 1 else torch.zeros_like(scores[:, 0])
        return scores.mean(dim=1), spread


def features(images: Tensor, texts: Tensor) -> Tensor:
    """What a reward model reads: embeddings of image and caption and their product, float32 [B, 3 D].

    The embeddings have length 1; the factor makes a typical number about 1 in each third.
    """
    width = images.shape[1]
    images, texts = images.float() * width**0.5, texts.float() * width**0.5
    return torch.cat([images, texts, images * texts], dim=1)


def load_preference(path: str | Path) -> PreferenceHead:
    """Loads a reward model.

    Raises:
        ValueError: the file is no reward model.
    """
    specs, info = read_head(path)
    if info.output != OUTPUT:
        raise ValueError(
            f"{path}: its output is a {info.output}, so it is not a reward model; train one with "
            "python -m dalle_ppo.reward_model"
        )
    return PreferenceHead(build_layers(specs), info, read_probes(path), path)
