"""Writes a trained detector as a head that belongs to one CLIP."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dalle_ppo.models.heads.head_info import HeadInfo
from dalle_ppo.models.heads.head_layers import LayerSpec
from dalle_ppo.models.heads.nsfw import save_head
from dalle_ppo.training.detector.data import read_array


def save_detector(
    path: Path, layers: list[LayerSpec], clip: tuple[str, str], embeddings_file: Path, licence: str = ""
) -> HeadInfo:
    """Writes the file that `load_detector` reads.

    Args:
        path: the `.safetensors` file.
        layers: from the embedding to the probability.
        clip: name and tag of the CLIP, as `ClipScorer` has them.
        embeddings_file: what it was trained on; if its numbers are float16, the reward rounds to float16 too.
        licence: a note on the terms of use.

    Returns:
        The metadata that was written.
    """
    info = HeadInfo(
        clip_model=clip[0],
        clip_pretrained=clip[1],
        dimension=layers[0].tensors["mean"].shape[0],
        output="probability",
        round_to_float16=read_array(embeddings_file).dtype == "float16",
        source=embeddings_file.name,
        source_sha256=hashlib.sha256(embeddings_file.read_bytes()).hexdigest(),
        licence=licence,
    )
    save_head(path, layers, info)
    return info
