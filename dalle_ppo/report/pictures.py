"""Pictures of the report, embedded in the page."""

import base64
import io
import math
from dataclasses import dataclass

import numpy as np

LOSSLESS_SIDE = 96


@dataclass(frozen=True)
class Picture:
    """One picture with what the page says about it.

    Attributes:
        uri: data URI.
        reward: text.
        probability: text of the detector's probability.
        veiled: whether it is blurred until clicked.
    """

    uri: str
    reward: str
    probability: str
    veiled: bool


def picture(uri: str, reward: float, probability: float, upper: float) -> Picture:
    """A picture; veiled where the detector's probability is above `upper`, or unknown."""
    return Picture(
        uri=uri,
        reward=f"{round(reward, 1):g}".replace("-", "\N{MINUS SIGN}")
        if math.isfinite(reward)
        else "\N{EN DASH}",
        probability=f"{probability:.2f}" if math.isfinite(probability) else "\N{EN DASH}",
        veiled=not probability <= upper,
    )


def data_uri(image: np.ndarray) -> str:
    """An image, uint8 [H, W, 3], as a data URI: PNG up to 96 pixels a side, JPEG above."""
    from PIL import Image

    small = max(image.shape[:2]) <= LOSSLESS_SIDE
    buffer = io.BytesIO()
    if small:
        Image.fromarray(image).save(buffer, "PNG")
    else:
        Image.fromarray(image).save(buffer, "JPEG", quality=88)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
