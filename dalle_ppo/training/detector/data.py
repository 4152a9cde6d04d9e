"""Reads and checks embeddings and labels of images, and splits them into parts."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MIN_EXAMPLES = 20
"""How many examples each class needs."""
SHARES = (0.6, 0.2, 0.2)
"""Shares of the images to fit on, to stop and calibrate by, and to measure on."""


@dataclass(frozen=True)
class Examples:
    """N images as a detector sees them.

    Args:
        embeddings: float32 [N, D].
        labels: float32 [N] in 0..1: 1 for unsafe.
    """

    embeddings: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def unsafe(self) -> np.ndarray:
        """bool [N]: the label is at least 0.5."""
        return self.labels >= 0.5

    def rows(self, which: np.ndarray) -> Examples:
        """The images that an index or a mask names."""
        return Examples(self.embeddings[which], self.labels[which])


@dataclass(frozen=True)
class Parts:
    """Images to fit on, to stop and calibrate by, and to measure on; equal embeddings lie in one part."""

    fit: Examples
    validation: Examples
    test: Examples


def read_examples(embeddings_file: Path, labels_file: Path) -> Examples:
    """Reads and checks two `.npy` files.

    Args:
        embeddings_file: numbers [N, D], from the CLIP that the detector is for.
        labels_file: [N] or [N, 1]: 0 for safe and 1 for unsafe, or the probability of unsafe.

    Raises:
        ValueError: a file cannot be read, the shapes do not match, a number is not finite, a label lies
            outside 0..1, or a class has fewer than 20 examples.
    """
    embeddings, labels = read_array(embeddings_file), read_array(labels_file)
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(
            f"--embeddings {embeddings_file} has shape {list(embeddings.shape)}; it must be [images, width]"
        )
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"--labels {labels_file} has shape {list(labels.shape)}, but --embeddings {embeddings_file} has "
            f"{list(embeddings.shape)}; there must be one label for each embedding"
        )
    examples = Examples(embeddings.astype(np.float32), labels.astype(np.float32))
    _check_numbers(examples, embeddings_file, labels_file)
    _warn_about_lengths(examples.embeddings, embeddings_file)
    return examples


def read_array(path: Path) -> np.ndarray:
    """A `.npy` file of numbers.

    Raises:
        ValueError: it is not one.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged file can make its reader fail anywhere
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{path}: not a .npy file of numbers ({reason})") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        kind = getattr(array, "dtype", "an archive")
        raise ValueError(f"{path} holds {kind}; it must be a .npy file of numbers")
    return array


def _check_numbers(examples: Examples, embeddings_file: Path, labels_file: Path) -> None:
    finite = np.isfinite(examples.embeddings).all(axis=1)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(
            f"--embeddings {embeddings_file}: {np.sum(~finite)} rows hold NaN or infinity, row {first} "
            "is the first; remove them"
        )
    wrong = ~((examples.labels >= 0) & (examples.labels <= 1))  # NaN too
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"--labels {labels_file}: label {first} is {examples.labels[first]:g}; labels must be 0 for safe "
            "and 1 for unsafe, or probabilities of unsafe"
        )
    for name, count in (("unsafe", examples.unsafe.sum()), ("safe", (~examples.unsafe).sum())):
        if count < MIN_EXAMPLES:
            raise ValueError(
                f"--labels {labels_file}: {count} of {len(examples)} images are {name}; each class needs at "
                f"least {MIN_EXAMPLES}"
            )


def _warn_about_lengths(embeddings: np.ndarray, path: Path) -> None:
    """The reward's embeddings have length 1, so a detector for others would be useless there."""
    lengths = np.linalg.norm(embeddings, axis=1)
    if np.abs(lengths - 1).max() > 0.01:
        warnings.warn(
            f"--embeddings {path}: their lengths are {lengths.min():.3g} to {lengths.max():.3g}, but the "
            "reward gives its detector embeddings of length 1; divide each by its length",
            stacklevel=2,
        )


def split(examples: Examples, seed: int) -> Parts:
    """Draws the parts, with the same mix of classes in each.

    Equal embeddings are copies of one image. They stay together, or the network would be tested on images
    that it has learned.

    Args:
        examples: all images.
        seed: seed of the draw.

    Raises:
        ValueError: so many images are copies that a part would hold fewer than two of a class.
    """
    rng = np.random.default_rng(seed)
    copies: dict[bytes, list[int]] = {}
    for row, embedding in enumerate(examples.embeddings):
        copies.setdefault(hashlib.blake2b(embedding.tobytes(), digest_size=16).digest(), []).append(row)
    groups = list(copies.values())
    group_is_unsafe = np.array([examples.unsafe[rows[0]] for rows in groups])
    rows_of_part: list[list[int]] = [[], [], []]
    for unsafe in (False, True):
        of_class = np.flatnonzero(group_is_unsafe == unsafe)
        order = rng.permutation(of_class)
        ends = np.round(np.cumsum(SHARES)[:2] * len(order)).astype(int)
        for part, chosen in zip(rows_of_part, np.split(order, ends), strict=True):
            part += [row for group in chosen for row in groups[group]]
    parts = Parts(*(examples.rows(np.sort(np.array(rows, dtype=int))) for rows in rows_of_part))
    for part in (parts.fit, parts.validation, parts.test):
        if min(part.unsafe.sum(), (~part.unsafe).sum()) < 2:
            raise ValueError(
                f"of {len(examples)} embeddings only {len(groups)} differ, too few to hold some of both "
                "classes back for the test; add images"
            )
    return parts
