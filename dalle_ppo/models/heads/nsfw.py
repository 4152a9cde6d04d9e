"""Detectors and score heads on CLIP embeddings: files, metadata, and the binding to one CLIP model."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.base.one_line import one_line
from dalle_ppo.base.tensor_files import save_tensors
from dalle_ppo.models.heads.head_check import check_chain
from dalle_ppo.models.heads.head_info import HeadInfo
from dalle_ppo.models.heads.head_layers import LayerSpec, build_layers
from dalle_ppo.models.heads.probes import NUM_PROBES, PROBES
from dalle_ppo.models.heads.published import read_torch_head, read_violence_directions

MAX_LAYERS, MAX_DIMENSION = 200, 65_536
FORMAT = "dalle_ppo.head.v1"
# On a CPU, smaller batches use kernels that round differently: by 1.2e-6 for the ViT-B/32 detector.
# Padded to this many rows, they match TensorFlow's numbers as closely as larger ones do.
MIN_ROWS = 8
# On a CPU, larger batches are split so that results stay in the cache: 3 times as fast for 65 536 rows.
CACHE_ROWS = 1024
# How far from 1 the norm of embeddings may be: rounding to float16 moves it by 0.001, forgetting to normalise
# by much more.
NORM_TOLERANCE = 0.05


class EmbeddingHead(nn.Module):
    """Maps CLIP embeddings to one number each.

    Args:
        layers: its layers, in order.
        info: its metadata.
        probes: its CLIP's embeddings of the drawings in `probes.py`, float32 [8, D]; None if not known.
        path: the file it came from.
    """

    def __init__(
        self,
        layers: nn.Sequential,
        info: HeadInfo,
        probes: Tensor | None = None,
        path: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.info = info
        self.probes = probes
        self.path = path
        self._has_warned = False
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
        self._check_norm(x)
        if 0 < num_rows < MIN_ROWS and x.device.type == "cpu":
            x = nn.functional.pad(x, (0, 0, 0, MIN_ROWS - num_rows))
        with torch.autocast(x.device.type, enabled=False):
            if x.device.type != "cpu":
                return self.layers(x)[:, 0]
            return torch.cat([self.layers(rows)[:, 0] for rows in x.split(CACHE_ROWS)])[:num_rows]

    def _check_norm(self, x: Tensor) -> None:
        """Warns once if embeddings are not L2-normalised: their numbers would mean something else."""
        if self._has_warned or not len(x):
            return
        norm = x.detach()[:CACHE_ROWS].norm(dim=1).mean().item()
        if abs(norm - 1) > NORM_TOLERANCE:
            self._has_warned = True
            warnings.warn(
                f"the head from {self.info.source} gets embeddings of norm {norm:.3g}, but needs "
                "L2-normalised ones, of norm 1; for others its numbers mean nothing",
                stacklevel=5,  # the caller, behind two frames of torch
            )


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
        ValueError: it is not such a file, or the head returns scores.
    """
    specs, info = read_head(path)
    _refuse_reward_model(path, info)
    if info.output != "probability":
        raise ValueError(
            f"{path}: its output is a {info.output}, not a probability; use load_head for it, or, if it is a "
            "logit, convert it again with --final sigmoid"
        )
    return EmbeddingHead(build_layers(specs, smooth=smooth), info, read_probes(path), path)


def load_head(path: str | Path, column: int | None = None) -> EmbeddingHead:
    """Load any head on CLIP embeddings.

    Args:
        path: a `.safetensors` file written by the converter, LAION's `h14_nsfw.pth`, its aesthetic predictor
            `sac+logos+ava1-l14-linearMSE.pth`, or its `violence_detection_vit_*.npy` directions.
        column: of a file of directions, the one whose cosine is the score; None is how much nearer the second
            one is than the first. Other heads have column 0 only.

    Returns:
        A module mapping L2-normalised embeddings [B, D] to scores [B]. Published `.pth` and `.npy` heads
        return raw scores: near 0 to 1 for the NSFW head, about 1 to 10 for the aesthetic one, and for
        violence the difference of two cosines, above 0 if closer to violence.

    Raises:
        ValueError: it is none of these, or has no such column.
    """
    specs, info, probes = read_any_head(path)
    _refuse_reward_model(path, info)
    if column is not None:
        specs = _one_column(Path(path), specs, info, column)
    return EmbeddingHead(build_layers(specs), info, probes, path)


def _refuse_reward_model(path: str | Path, info: HeadInfo) -> None:
    if info.output == "preference":
        raise ValueError(
            f"{path} is a reward model, which reads image and caption; use it as the reward term preference"
        )


def read_any_head(path: str | Path) -> tuple[list[LayerSpec], HeadInfo, Tensor | None]:
    """Layers, metadata and probes of any head that `load_head` reads.

    Raises:
        ValueError: it is none of them.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    readers = {".pth": read_torch_head, ".pt": read_torch_head, ".npy": read_violence_directions}
    if path.suffix in readers:
        return *readers[path.suffix](path), None
    return *read_head(path), read_probes(path)


def _one_column(path: Path, specs: list[LayerSpec], info: HeadInfo, column: int) -> list[LayerSpec]:
    """The layers that return one column of a head."""
    if path.suffix == ".npy":
        return read_violence_directions(path, column)[0]
    if info.source.endswith(".npy"):
        raise ValueError(
            f"{path}: holds only the difference of the two directions of {info.source}, so it has no column "
            f"{column}; give {info.source} itself, or leave column out"
        )
    if column != 0:
        raise ValueError(f"{path}: has no output column {column}; it has one output, column 0")
    return specs


def save_head(path: str | Path, specs: list[LayerSpec], info: HeadInfo, probes: Tensor | None = None) -> None:
    """Write a head: tensors named `<layer>.<name>` and `probes`, everything else as safetensors metadata."""
    tensors = {f"{i}.{k}": t.contiguous() for i, spec in enumerate(specs) for k, t in spec.tensors.items()}
    layers = [{"type": spec.type, **spec.options} for spec in specs]
    metadata = {"format": FORMAT, "layers": json.dumps(layers), "info": json.dumps(asdict(info))}
    if probes is not None:
        tensors["probes"] = probes.float().cpu().contiguous()
        metadata["probes"] = PROBES
    atomic_write(path, lambda new: save_tensors(tensors, new, metadata))


def read_head(path: str | Path) -> tuple[list[LayerSpec], HeadInfo]:
    """Read what `save_head` wrote.

    Raises:
        ValueError: the file is missing, is not a safetensors file, or was not written by `save_head`.
    """
    metadata, tensors = _read_file(path)
    tensors.pop("probes", None)
    specs = []
    layers, info = _described(path, metadata)
    for position, layer in enumerate(layers):
        prefix = f"{position}."
        own = {
            name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)
        }
        specs.append(LayerSpec(layer.pop("type"), layer, own))
    if tensors:
        raise ValueError(f"{path}: tensors that do not belong to any layer: {', '.join(sorted(tensors))}")
    try:
        check_chain(specs, info.width)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: {error}; convert the head again") from None
    return specs, info


def _described(path: str | Path, metadata: dict[str, str]) -> tuple[list[dict], HeadInfo]:
    """The layers' options and the head's metadata, as the file says.

    Raises:
        ValueError: they are missing, or not what `save_head` writes.
    """
    try:
        layers, info = json.loads(metadata["layers"]), HeadInfo(**json.loads(metadata["info"]))
        if not isinstance(layers, list) or not all(isinstance(layer.get("type"), str) for layer in layers):
            raise TypeError("layers have no type")
        if type(info.dimension) is not int or not 0 < info.dimension <= MAX_DIMENSION:
            raise TypeError(f"dimension is {str(info.dimension)[:40]}")
        words = (info.clip_model, info.clip_pretrained, info.output, info.source)
        if len(layers) > MAX_LAYERS or not all(isinstance(word, str) for word in words):
            raise TypeError(f"{len(layers)} layers, and metadata {words}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: its metadata describe no head ({one_line(error)}); convert the head again"
        ) from None
    return layers, info


def read_probes(path: str | Path) -> Tensor | None:
    """The embeddings of the drawings by the head's CLIP, float32 [8, D]; None if the file has none.

    Raises:
        ValueError: as in `read_head`, or the drawings are those of another version, or the embeddings are
            damaged.
    """
    metadata, tensors = _read_file(path)
    probes = tensors.get("probes")
    if probes is None:
        return None
    if metadata.get("probes") != PROBES:
        raise ValueError(
            f"{path}: its probes are {metadata.get('probes')}, but this version needs {PROBES}; convert the "
            "head again and add probes with converters/add_probes.py"
        )
    shape = [NUM_PROBES, _described(path, metadata)[1].dimension]
    if [*probes.shape] != shape or not probes.is_floating_point() or not probes.float().isfinite().all():
        raise ValueError(
            f"{path}: its probes are damaged ({probes.dtype}, {[*probes.shape]}), not finite floats of shape "
            f"{shape}; convert the head again and add probes with converters/add_probes.py"
        )
    return probes


def _read_file(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a head's file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; convert one with converters/keras_nsfw_to_torch.py")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a safetensors file ({reason}); fetch it again") from None
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "missing")
        raise ValueError(f"{path}: format is {found}, needs {FORMAT}; convert the detector again")
    return metadata, tensors


@torch.no_grad()
def head_probability(head: EmbeddingHead, embeddings: Tensor) -> Tensor:
    """Scores CLIP embeddings with a head, after rounding them to float16 if it was trained on float16.

    Args:
        head: a detector or a score head.
        embeddings: [B, D] float, L2-normalised, from the CLIP that the head belongs to.

    Returns:
        [B] float32: probabilities in [0, 1], or scores, as `head.info.output` says.
    """
    return head(embeddings.half().float() if head.info.round_to_float16 else embeddings)


def check_clip(info: HeadInfo, clip_model: str, clip_pretrained: str, dimension: int) -> None:
    """Reject a head made for a CLIP other than the one in use, by their names.

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
            "convert it again with --clip_model and --clip_pretrained, or add its CLIP's probes with "
            "converters/add_probes.py"
        )
    wanted = (_plain_name(info.clip_model), info.clip_pretrained, info.dimension)
    if wanted != (_plain_name(clip_model), clip_pretrained, dimension):
        raise ValueError(
            f"the head from {info.source} reads embeddings of CLIP {info.clip_model} "
            f"({info.clip_pretrained}, {info.dimension} numbers), but the CLIP in use is {clip_model} "
            f"({clip_pretrained}, {dimension} numbers); use the head's CLIP or a head made for this one, or "
            f"say that they are the same with clip.same_as: {info.clip_model}:{info.clip_pretrained}"
        )


def _plain_name(clip_model: str) -> str:
    """OpenAI's ViT-L/14 and open_clip's ViT-L-14 are the same model; so is -quickgelu, with equal weights."""
    return clip_model.replace("/", "-").removesuffix("-quickgelu")
