"""Detectors and score heads on CLIP embeddings: files, metadata, and the binding to one CLIP model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.models.heads.head_info import HeadInfo
from dalle_ppo.models.heads.head_layers import LayerSpec, build_layers
from dalle_ppo.models.heads.published import read_torch_head, read_violence_directions

FORMAT = "dalle_ppo.head.v1"
# Smaller batches use other kernels on a CPU, which round differently: by 1.2e-6 for the ViT-B/32 detector.
# Padded to this many rows, they match TensorFlow's numbers as closely as larger ones do.
MIN_ROWS = 8
# On a CPU larger batches are split so that intermediate results stay in the cache: 3 times as fast at 65 536.
CACHE_ROWS = 1024


class EmbeddingHead(nn.Module):
    """Maps CLIP embeddings to one number each; `info` says which CLIP they must come from."""

    def __init__(self, layers: nn.Sequential, info: HeadInfo) -> None:
        super().__init__()
        self.layers = layers
        self.info = info
        self.eval()

    def forward(self, embeddings: Tensor) -> Tensor:
        """Score a batch.

        Args:
            embeddings: [B, D], any float dtype; computed in float32, even under autocast.

        Returns:
            [B] float32, probabilities in [0, 1] or scores, as `info.output` says.

        Raises:
            ValueError: the embeddings have another shape.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.info.dimension:
            shape = list(embeddings.shape)
            raise ValueError(f"embeddings have shape {shape}, the head needs [B, {self.info.dimension}]")
        num_rows = len(embeddings)
        x = embeddings.to(torch.float32)
        if 0 < num_rows < MIN_ROWS and x.device.type == "cpu":
            x = nn.functional.pad(x, (0, 0, 0, MIN_ROWS - num_rows))
        with torch.autocast(x.device.type, enabled=False):
            if x.device.type != "cpu":
                return self.layers(x)[:, 0]
            return torch.cat([self.layers(rows)[:, 0] for rows in x.split(CACHE_ROWS)])[:num_rows]


def load_detector(path: str | Path, smooth: bool = False) -> EmbeddingHead:
    """Load a converted NSFW detector.

    Args:
        path: a `.safetensors` file that `converters/keras_nsfw_to_torch.py` or `dalle_ppo.detector` wrote.
        smooth: leave the category tables out (index 0 always), for a detector that is continuous in the
            embedding. It is then no longer the published one: on the reference embeddings, single
            probabilities move by up to 0.20 for LAION's ViT-L/14 detector and 0.13 for its ViT-B/32 one.

    Returns:
        A module mapping embeddings [B, D] to probabilities [B].

    Raises:
        ValueError: it is not such a file, or the head gives scores.
    """
    specs, info = read_head(path)
    if info.output != "probability":
        raise ValueError(
            f"{path}: its output is a {info.output}, not a probability; use load_head for it, or, if it is a "
            "logit, convert it again with --final sigmoid"
        )
    return EmbeddingHead(build_layers(specs, smooth=smooth), info)


def load_head(path: str | Path) -> EmbeddingHead:
    """Load any head on CLIP embeddings.

    Args:
        path: a `.safetensors` file written by the converter, LAION's `h14_nsfw.pth`, its aesthetic predictor
            `sac+logos+ava1-l14-linearMSE.pth`, or its `violence_detection_vit_*.npy` directions.

    Returns:
        A module mapping L2-normalised embeddings [B, D] to scores [B]. Published `.pth` and `.npy` heads give
        raw scores: near 0 to 1 for the NSFW head, about 1 to 10 for the aesthetic one, and for violence the
        difference of two cosines, above 0 if closer to violence.

    Raises:
        ValueError: it is none of these.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    readers = {".pth": read_torch_head, ".pt": read_torch_head, ".npy": read_violence_directions}
    specs, info = readers.get(path.suffix, read_head)(path)
    return EmbeddingHead(build_layers(specs), info)


def save_head(path: str | Path, specs: list[LayerSpec], info: HeadInfo) -> None:
    """Write a head: tensors named `<layer>.<name>`, everything else in the safetensors metadata."""
    tensors = {f"{i}.{k}": t.contiguous() for i, spec in enumerate(specs) for k, t in spec.tensors.items()}
    layers = [{"type": spec.type, **spec.options} for spec in specs]
    metadata = {"format": FORMAT, "layers": json.dumps(layers), "info": json.dumps(asdict(info))}
    atomic_write(path, lambda new: save_file(tensors, new, metadata=metadata))


def read_head(path: str | Path) -> tuple[list[LayerSpec], HeadInfo]:
    """Read what `save_head` wrote.

    Raises:
        ValueError: the file is missing, is not a safetensors file, or was not written by `save_head`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; convert one with converters/keras_nsfw_to_torch.py")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from None
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "missing")
        raise ValueError(f"{path}: format is {found}, needs {FORMAT}; convert the detector again")
    specs = []
    for position, layer in enumerate(json.loads(metadata["layers"])):
        prefix = f"{position}."
        own = {
            name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)
        }
        specs.append(LayerSpec(layer.pop("type"), layer, own))
    if tensors:
        raise ValueError(f"{path}: tensors that do not belong to any layer: {', '.join(sorted(tensors))}")
    return specs, HeadInfo(**json.loads(metadata["info"]))


@torch.no_grad()
def head_probability(head: EmbeddingHead, embeddings: Tensor) -> Tensor:
    """Scores CLIP embeddings with a head, rounding them to float16 first if it was trained on such.

    Args:
        head: a detector or a score head.
        embeddings: [B, D] float, L2-normalised, from the CLIP that the head belongs to.

    Returns:
        [B] float32: probabilities in [0, 1], or scores, as `head.info.output` says.
    """
    return head(embeddings.half().float() if head.info.round_to_float16 else embeddings)


def check_clip(info: HeadInfo, clip_model: str, clip_pretrained: str, dimension: int) -> None:
    """Reject a head made for a CLIP other than the one in use.

    Args:
        info: the head's.
        clip_model, clip_pretrained: open_clip's names for the CLIP in use.
        dimension: width of its embeddings.

    Raises:
        ValueError: they differ, or the head's file does not say which CLIP it belongs to.
    """
    if not info.clip_model:
        raise ValueError(
            f"the head from {info.source} does not say which CLIP it belongs to; "
            "convert it again with --clip_model and --clip_pretrained"
        )
    wanted = (_plain_name(info.clip_model), info.clip_pretrained, info.dimension)
    if wanted != (_plain_name(clip_model), clip_pretrained, dimension):
        raise ValueError(
            f"the head from {info.source} reads embeddings of CLIP {info.clip_model} "
            f"({info.clip_pretrained}, {info.dimension} numbers), but the CLIP in use is {clip_model} "
            f"({clip_pretrained}, {dimension} numbers); use the head's CLIP or a head made for this one"
        )


def _plain_name(clip_model: str) -> str:
    """OpenAI's ViT-L/14 and open_clip's ViT-L-14 are the same model; so is -quickgelu, with equal weights."""
    return clip_model.replace("/", "-").removesuffix("-quickgelu")
