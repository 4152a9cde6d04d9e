"""Writes a trained detector as a head that belongs to one CLIP."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from dalle_ppo.models.clip_scorer import ClipScorer
from dalle_ppo.models.heads.head_info import HeadInfo
from dalle_ppo.models.heads.head_layers import LayerSpec
from dalle_ppo.models.heads.nsfw import save_head
from dalle_ppo.models.heads.probes import probe_images
from dalle_ppo.training.detector.data import read_array


def probes_of(clip: ClipScorer, width: int, embeddings_file: Path) -> Tensor:
    """The CLIP's embeddings of the drawings that a head's file keeps, [8, D].

    Raises:
        ValueError: the CLIP does not make embeddings of that width.
    """
    probes = clip.embed_images(probe_images())
    if probes.shape[1] != width:
        raise ValueError(
            f"{embeddings_file} holds {width} numbers per image, but CLIP {clip.name} ({clip.pretrained}) "
            f"makes {probes.shape[1]}; name the CLIP that made them"
        )
    return probes


def save_detector(
    path: Path,
    layers: list[LayerSpec],
    clip: tuple[str, str],
    probes: Tensor,
    embeddings_file: Path,
    licence: str = "",
) -> HeadInfo:
    """Writes the file that `load_detector` reads.

    Args:
        path: the `.safetensors` file.
        layers: from the embedding to the probability.
        clip: name and tag of the CLIP, as `ClipScorer` has them.
        probes: of `probes_of`.
        embeddings_file: what it was trained on; if its numbers are float16, the reward rounds to float16 too.
        licence: a note on the terms.

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
    save_head(path, layers, info, probes)
    return info
