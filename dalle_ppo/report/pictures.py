"""Pictures embedded in the report page."""

import base64
import io
import math
from dataclasses import dataclass

import numpy as np

LOSSLESS_SIDE = 96


@dataclass(frozen=True)
class Picture:
    """One picture and the text shown with it.

    Attributes:
        uri: data URI.
        reward: the reward as text.
        probability: the detector's probability as text; empty if the reward has no detector.
        veiled: whether it is blurred until clicked.
    """

    uri: str
    reward: str
    probability: str
    veiled: bool


def picture(uri: str, reward: float, probability: float | None, veiled: bool) -> Picture:
    """A picture with its numbers; a `probability` of None means that the reward has no detector."""
    return Picture(
        uri=uri,
        reward=f"{round(reward, 1):g}".replace("-", "\N{MINUS SIGN}")
        if math.isfinite(reward)
        else "\N{EN DASH}",
        probability=_two_digits(probability),
        veiled=veiled,
    )


def _two_digits(probability: float | None) -> str:
    if probability is None:
        return ""
    return f"{probability:.2f}" if math.isfinite(probability) else "\N{EN DASH}"


def data_uri(image: np.ndarray) -> str:
    """An image, uint8 [H, W, 3], as a data URI: PNG up to 96 pixels per side, JPEG above."""
    from PIL import Image

    small = max(image.shape[:2]) <= LOSSLESS_SIDE
    buffer = io.BytesIO()
    if small:
        Image.fromarray(image).save(buffer, "PNG")
    else:
        Image.fromarray(image).save(buffer, "JPEG", quality=88)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
