"""LAION's published detectors: where they are, what they must hash to, and which CLIP they belong to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedDetector:
    """One published detector. `graph_sha256` is of its saved_model.pb, to recognise it when unpacked."""

    url: str
    sha256: str
    graph_sha256: str
    clip_model: str
    clip_pretrained: str
    licence: str = "MIT, Copyright 2022 Christoph Schuhmann (LAION-AI/CLIP-based-NSFW-Detector)"


_REPOSITORY = "https://github.com/LAION-AI/CLIP-based-NSFW-Detector/raw/main"

DETECTORS = {
    "laion-l14": PublishedDetector(
        url=f"{_REPOSITORY}/clip_autokeras_binary_nsfw.zip",
        sha256="905520bb0336accc73ee282c605d926aef90cf14248889d44b9cee50eef71f8a",
        graph_sha256="c08bec1ff14f532992ebe7cc22508be322858f81809e4b4b4b4c30662acdf428",
        clip_model="ViT-L-14",
        clip_pretrained="openai",
    ),
    "laion-b32": PublishedDetector(
        url=f"{_REPOSITORY}/clip_autokeras_nsfw_b32.zip",
        sha256="78715ab9d64485167e8c9ade3b8e6761a17a16c24d114bd47431ac1dab46462b",
        graph_sha256="1aa6a695b9bd8e4400f2bcb568f99630d5e878cfb607acbcbc6c31b60a08865d",
        clip_model="ViT-B-32",
        clip_pretrained="openai",
    ),
}
