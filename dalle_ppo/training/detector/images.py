"""Turns a folder of images into CLIP embeddings, with labels from the names of its subfolders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.models.clip import ClipScorer

UNSAFE_FOLDERS = ("unsafe", "nsfw", "1")
SAFE_FOLDERS = ("safe", "sfw", "0")


@dataclass(frozen=True)
class Embedded:
    """A batch of images.

    Args:
        names: paths relative to the folder, with slashes.
        embeddings: float32 [B, D], L2-normalised.
        unreadable: name and reason of each image that was left out.
    """

    names: list[str]
    embeddings: np.ndarray
    unreadable: list[tuple[str, str]]


def find_images(folder: Path) -> list[str]:
    """Names of the images in a folder and its subfolders, sorted; hidden files and other files are skipped.

    Args:
        folder: where to look.

    Returns:
        Paths relative to the folder, with slashes.

    Raises:
        ValueError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name one with images")
    kinds = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in kinds)
    names = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
    if not names:
        raise ValueError(f"{folder} holds no images (files with suffixes such as .png, .jpg or .webp)")
    return sorted(names)


def embed_images(folder: Path, names: list[str], clip: ClipScorer, batch_size: int) -> Iterator[Embedded]:
    """Embeds images as the reward embeds a policy's, after making them square as the CLIP learned it.

    Args:
        folder: the images' folder.
        names: paths relative to it.
        clip: a frozen CLIP.
        batch_size: images per forward pass.

    Yields:
        The embeddings of each batch, in order.
    """
    crop = crops(clip)
    for first in range(0, len(names), batch_size):
        images, read, unreadable = [], [], []
        for name in names[first : first + batch_size]:
            try:
                images.append(square(folder / name, clip.image_size, crop))
                read.append(name)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                unreadable.append((name, " ".join(str(error).split()) or type(error).__name__))
        embeddings = clip.embed_images(torch.stack(images), batch_size).cpu().numpy() if images else None
        yield Embedded(read, np.empty((0, 0), np.float32) if embeddings is None else embeddings, unreadable)


def crops(clip: ClipScorer) -> bool:
    """Whether this CLIP learned from the central squares of images, rather than from squashed images.

    Raises:
        ValueError: it learned from padded images.
    """
    mode = getattr(clip.model.visual, "preprocess_cfg", {}).get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise ValueError(f"CLIP {clip.name} pads images (resize_mode {mode}), which embed does not")
    return mode == "shortest"


def square(path: Path, size: int, crop: bool) -> Tensor:
    """Reads an image file as a square, upright and without transparency.

    It is scaled here, bicubically, so that images of several sizes fit in one batch.

    Args:
        path: the file.
        size: width and height of the result.
        crop: take the central square; else squash the whole image.

    Returns:
        float [3, size, size] in 0..1.

    Raises:
        OSError, ValueError, SyntaxError: the file is not a readable image.
    """
    if "\n" in str(path):
        raise ValueError("its name holds a line break")
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    if crop:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    if image.size != (size, size):
        scaling = {"mode": "bicubic", "antialias": True, "align_corners": False}
        tensor = F.interpolate(tensor, size=size, **scaling).clamp(0, 1)
    return tensor[0]


def labels_from_names(names: list[str], unsafe_folders: tuple[str, ...] = ()) -> np.ndarray:
    """Labels images by the subfolder they lie in.

    Args:
        names: paths relative to the folder.
        unsafe_folders: the subfolders with unsafe images; all others are safe. Without any, subfolders must
            be called unsafe, nsfw or 1, and safe, sfw or 0.

    Returns:
        float32 [N]: 1 for unsafe, 0 for safe.

    Raises:
        ValueError: an image does not lie in a subfolder, or a subfolder's name has no meaning.
    """
    labels = []
    folders = [name.split("/")[0] if "/" in name else None for name in names]
    missing = [folder for folder in unsafe_folders if folder not in folders]
    if missing:
        found = ", ".join(sorted({folder for folder in folders if folder})) or "none"
        raise ValueError(f"--unsafe {missing[0]}: no image lies in such a subfolder; found: {found}")
    for name, folder in zip(names, folders, strict=True):
        if folder is None:
            raise ValueError(f"--labels: {name} is not in a subfolder, so nothing says whether it is unsafe")
        if not unsafe_folders and folder.lower() not in (*UNSAFE_FOLDERS, *SAFE_FOLDERS):
            raise ValueError(
                f"--labels: the subfolder {folder} is not one of {', '.join(UNSAFE_FOLDERS)} or "
                f"{', '.join(SAFE_FOLDERS)}; say which are unsafe with --unsafe NAME"
            )
        labels.append(folder in unsafe_folders if unsafe_folders else folder.lower() in UNSAFE_FOLDERS)
    return np.array(labels, dtype=np.float32)


def write_embeddings(
    batches: list[Embedded], out: Path, labels: Path | None, unsafe_folders: tuple[str, ...] = ()
) -> tuple[tuple[int, int], int]:
    """Writes the batches that `embed_images` yielded.

    Args:
        batches: all of them.
        out: the `.npy` file of the embeddings; the names go to the `.txt` file of that name, one per line.
        labels: the `.npy` file of the labels, if wanted.
        unsafe_folders: as for `labels_from_names`.

    Returns:
        The shape of the embeddings, and how many images were left out.

    Raises:
        ValueError: no image could be read.
    """
    read = [batch.embeddings for batch in batches if batch.names]
    if not read:
        raise ValueError(f"{out}: none of the images can be read")
    names = [name for batch in batches for name in batch.names]
    embeddings = np.concatenate(read).astype(np.float32)
    atomic_write(out, lambda path: np.save(path, embeddings))
    atomic_write(out.with_suffix(".txt"), "".join(f"{name}\n" for name in names))
    if labels is not None:
        values = labels_from_names(names, unsafe_folders)
        atomic_write(labels, lambda path: np.save(path, values))
    return embeddings.shape, sum(len(batch.unreadable) for batch in batches)
