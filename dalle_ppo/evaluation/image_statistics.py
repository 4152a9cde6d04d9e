"""Statistics of pixels and codes that reveal noise: a policy that fools a network leaves traces in them.

They know nothing about the content of a picture, but show whether pictures got noisier, flatter or more
alike.
"""

import io

import numpy as np

JPEG_QUALITY = 75
PREFIX = "image/"


def image_statistics(images: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """All statistics as columns of an evaluation; docs/metrics.md defines each one.

    Args:
        images: uint8 [N, H, W, 3].
        tokens: int [N, T].

    Returns:
        float64 [N] by name, with the prefix `image/`.
    """
    pixels = images.astype(np.float32)
    found = {
        "total_variation": total_variation(pixels),
        "high_frequency_share": high_frequency_share(pixels),
        "colourfulness": colourfulness(pixels),
        "jpeg_bytes": np.array([jpeg_bytes(image) for image in images]),
        "distinct_codes": distinct_codes(tokens),
    }
    return {PREFIX + name: values.astype(np.float64) for name, values in found.items()}


def total_variation(pixels: np.ndarray) -> np.ndarray:
    """Mean absolute difference between neighbouring pixels, in 0..1; pixels 0..255 [N, H, W, 3]."""
    down = np.abs(np.diff(pixels, axis=1)).mean(axis=(1, 2, 3))
    across = np.abs(np.diff(pixels, axis=2)).mean(axis=(1, 2, 3))
    return (down + across) / (2 * 255)


def high_frequency_share(pixels: np.ndarray) -> np.ndarray:
    """Share of the brightness variance above a quarter cycle per pixel; 0 for a flat picture."""
    grey = pixels.mean(axis=3)
    power = np.abs(np.fft.fft2(grey - grey.mean(axis=(1, 2), keepdims=True))) ** 2
    across, down = np.fft.fftfreq(grey.shape[2]), np.fft.fftfreq(grey.shape[1])[:, None]
    total = power.sum(axis=(1, 2))
    high = power[:, np.hypot(across, down) > 0.25].sum(axis=1)
    # Rounding leaves a little power even in a flat picture.
    return np.where(total > 1e-6 * grey[0].size ** 2, high / np.maximum(total, 1e-12), 0.0)


def colourfulness(pixels: np.ndarray) -> np.ndarray:
    """Spread plus 0.3 times the mean of the opponent colours.

    0 is grey; photographs reach about 110, and made-up pictures about 300.

    Source: Hasler and Suesstrunk 2003, Measuring colourfulness in natural images, equation 3.
    """
    red, green, blue = np.moveaxis(pixels, 3, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread, mean = opponents.std(axis=(2, 3)), opponents.mean(axis=(2, 3))
    return np.hypot(*spread) + 0.3 * np.hypot(*mean)


def jpeg_bytes(image: np.ndarray) -> int:
    """Size of a picture, uint8 [H, W, 3], as JPEG of quality 75."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.tell()


def distinct_codes(tokens: np.ndarray) -> np.ndarray:
    """How many different codes a picture uses; tokens int [N, T]."""
    ordered = np.sort(tokens, axis=1)
    return 1 + (np.diff(ordered, axis=1) != 0).sum(axis=1)
