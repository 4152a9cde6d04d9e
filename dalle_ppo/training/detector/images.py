"""Turns a folder of images into CLIP embeddings, with labels from the names of its subfolders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.models.clip_scorer import ClipScorer

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
    """Embeds images as the reward embeds a policy's, cropped and resized as the CLIP learned it.

    Args:
        folder: the images' folder.
        names: paths relative to it.
        clip: a frozen CLIP.
        batch_size: images per forward pass.

    Yields:
        The embeddings of each batch, in order.
    """
    crop = clip.crops
    for first in range(0, len(names), batch_size):
        images, read, unreadable = [], [], []
        for name in names[first : first + batch_size]:
            try:
                images.append(clip.resized(read_image(folder / name, crop)[None])[0])
                read.append(name)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                unreadable.append((name, " ".join(str(error).split()) or type(error).__name__))
        yield Embedded(read, _embeddings(images, clip, batch_size), unreadable)


def _embeddings(images: list[Tensor], clip: ClipScorer, batch_size: int) -> np.ndarray:
    """Embeddings in the order of the images; those of one size are encoded together."""
    by_size: dict[torch.Size, list[int]] = {}
    for place, image in enumerate(images):
        by_size.setdefault(image.shape, []).append(place)
    found: dict[int, np.ndarray] = {}
    for places in by_size.values():
        rows = clip.embed_images(torch.stack([images[place] for place in places]), batch_size).cpu().numpy()
        found |= dict(zip(places, rows, strict=True))
    return (
        np.stack([found[place] for place in range(len(images))]) if images else np.empty((0, 0), np.float32)
    )


def read_image(path: Path, crop: bool) -> Tensor:
    """Reads an image file, upright and without transparency.

    Args:
        path: the file.
        crop: take the central square; else the whole image.

    Returns:
        float [3, H, W] in 0..1.

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
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


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
