"""The fourteen icons of the built-in world, each drawn by a few lines of code.

A drawing function gets a `Pen` and the icon's main colour and works in unit coordinates: (0, 0) is the upper
left corner of the sprite and (1, 1) the lower right one. Every shape has a dark rim, so that silhouettes stay
readable at 28 px.
"""

from collections.abc import Callable, Sequence
from functools import cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]

SUPERSAMPLING = 8
RIM = 0.046  # as a fraction of the sprite's side: 1.8 px at 40 px
INK: Color = (40, 34, 50)
WHITE: Color = (255, 255, 255)
CREAM: Color = (255, 240, 214)
WOOD: Color = (140, 88, 48)
LEAF: Color = (96, 176, 72)
FLAME: Color = (255, 196, 40)
STEEL: Color = (92, 90, 104)

COLORS: dict[str, Color] = {
    "red": (226, 42, 48),
    "orange": (250, 136, 24),
    "yellow": (252, 218, 36),
    "green": (46, 164, 72),
    "blue": (44, 104, 226),
    "purple": (146, 62, 190),
}


class Pen:
    """Draws rimmed shapes in unit coordinates on a transparent, supersampled square."""

    def __init__(self, size: int):
        self.side = size * SUPERSAMPLING
        self.image = Image.new("RGBA", (self.side, self.side), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point], fill: Color, rim: float = RIM) -> None:
        """Fill a polygon and draw a rounded dark rim around it."""
        pixels = [(x * self.side, y * self.side) for x, y in points]
        if rim:
            self._stroke([*pixels, pixels[0]], 2 * rim * self.side, INK)
        self.draw.polygon(pixels, fill=fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Color, rim: float = RIM) -> None:
        """Fill an axis-aligned ellipse around (x, y)."""
        for grow, color in ((rim, INK), (0.0, fill)):
            box = (x - rx - grow, y - ry - grow, x + rx + grow, y + ry + grow)
            self.draw.ellipse([v * self.side for v in box], fill=color)

    def line(self, points: Sequence[Point], width: float, fill: Color, rim: float = RIM) -> None:
        """Draw a round-ended line."""
        pixels = [(x * self.side, y * self.side) for x, y in points]
        if rim:
            self._stroke(pixels, (width + 2 * rim) * self.side, INK)
        self._stroke(pixels, width * self.side, fill)

    def _stroke(self, pixels: Sequence[Point], width: float, fill: Color) -> None:
        self.draw.line(pixels, fill=fill, width=round(width), joint="curve")
        r = width / 2
        for x, y in pixels:
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def mix(a: Color, b: Color, share: float) -> Color:
    """The colour `share` of the way from `a` to `b`."""
    return tuple(round(p + (q - p) * share) for p, q in zip(a, b, strict=True))


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Points of an elliptic arc; angles in degrees, clockwise from the right."""
    angles = [(start + (end - start) * i / 24) * pi / 180 for i in range(25)]
    return [(x + rx * cos(a), y + ry * sin(a)) for a in angles]


def bow(a: Point, control: Point, b: Point) -> list[Point]:
    """Points of a quadratic Bezier curve."""
    ts = [i / 16 for i in range(17)]
    return [
        tuple(
            (1 - t) ** 2 * p + 2 * t * (1 - t) * q + t * t * r for p, q, r in zip(a, control, b, strict=True)
        )
        for t in ts
    ]


def turned(points: Sequence[Point], degrees: float) -> list[Point]:
    """The points rotated clockwise around the centre of the sprite."""
    c, s = cos(degrees * pi / 180), sin(degrees * pi / 180)
    return [(0.5 + c * (x - 0.5) - s * (y - 0.5), 0.5 + s * (x - 0.5) + c * (y - 0.5)) for x, y in points]


def _boat(pen: Pen, color: Color) -> None:
    pen.line([(0.47, 0.1), (0.47, 0.66)], 0.05, WOOD)
    pen.polygon([(0.40, 0.10), *bow((0.40, 0.10), (0.36, 0.4), (0.08, 0.58)), (0.40, 0.58)], color)
    pen.polygon(
        [(0.55, 0.16), *bow((0.55, 0.16), (0.84, 0.3), (0.88, 0.58)), (0.55, 0.58)], mix(color, WHITE, 0.45)
    )
    pen.polygon(
        [
            (0.06, 0.69),
            (0.94, 0.69),
            *bow((0.94, 0.69), (0.88, 0.93), (0.72, 0.93)),
            *bow((0.28, 0.93), (0.12, 0.93), (0.06, 0.69)),
        ],
        color,
    )
    pen.line([(0.17, 0.775), (0.83, 0.775)], 0.05, CREAM, rim=0)


def _house(pen: Pen, color: Color) -> None:
    pen.polygon([(0.68, 0.12), (0.80, 0.12), (0.80, 0.36), (0.68, 0.36)], WOOD)
    pen.polygon([(0.16, 0.46), (0.84, 0.46), (0.84, 0.93), (0.16, 0.93)], color)
    pen.polygon([(0.5, 0.07), (0.95, 0.48), (0.05, 0.48)], mix(color, INK, 0.2))
    pen.polygon(
        [(0.27, 0.93), (0.27, 0.64), *arc(0.36, 0.64, 0.09, 0.09, 180, 360), (0.45, 0.93)], WOOD, rim=0.03
    )
    pen.polygon([(0.57, 0.60), (0.75, 0.60), (0.75, 0.76), (0.57, 0.76)], CREAM, rim=0.03)


def _tree(pen: Pen, color: Color) -> None:
    pen.polygon([(0.42, 0.78), (0.58, 0.78), (0.60, 0.94), (0.40, 0.94)], WOOD)
    for top, bottom, half in ((0.44, 0.80, 0.42), (0.24, 0.58, 0.33), (0.06, 0.36, 0.23)):
        pen.polygon(
            [(0.5, top), *bow((0.5 + half, bottom), (0.5, bottom + 0.08), (0.5 - half, bottom))], color
        )
    for y, x in ((0.26, 0.44), (0.46, 0.38), (0.69, 0.31)):
        pen.line([(x, y), (x - 0.05, y + 0.05)], 0.04, mix(color, WHITE, 0.6), rim=0)


def _fish(pen: Pen, color: Color) -> None:
    pen.polygon([(0.70, 0.52), *bow((0.94, 0.24), (0.84, 0.52), (0.94, 0.80))], mix(color, INK, 0.2))
    pen.polygon([*bow((0.30, 0.34), (0.44, 0.08), (0.66, 0.20)), (0.60, 0.36)], mix(color, INK, 0.2))
    pen.polygon(
        [*bow((0.05, 0.54), (0.36, 0.04), (0.78, 0.52)), *bow((0.78, 0.52), (0.36, 1.04), (0.05, 0.54))],
        color,
    )
    pen.line(bow((0.40, 0.34), (0.50, 0.54), (0.40, 0.74)), 0.035, mix(color, INK, 0.5), rim=0)
    pen.ellipse(0.24, 0.46, 0.075, 0.075, WHITE, rim=0.025)
    pen.ellipse(0.225, 0.46, 0.035, 0.035, INK, rim=0)


def _star(pen: Pen, color: Color) -> None:
    radii = (0.47, 0.21)
    corners = [
        (0.5 + radii[i % 2] * sin(i * pi / 5), 0.53 - radii[i % 2] * cos(i * pi / 5)) for i in range(10)
    ]
    pen.polygon(corners, color)
    pen.line([(0.41, 0.42), (0.46, 0.28)], 0.055, mix(color, WHITE, 0.65), rim=0)


def _heart(pen: Pen, color: Color) -> None:
    left = [*bow((0.5, 0.92), (0.05, 0.62), (0.07, 0.36)), *arc(0.285, 0.33, 0.215, 0.215, 175, 345)]
    pen.polygon([*left, (0.5, 0.32), *[(1 - x, y) for x, y in reversed(left)]], color)
    pen.line(arc(0.29, 0.34, 0.12, 0.12, 170, 270), 0.06, mix(color, WHITE, 0.7), rim=0)


def _flower(pen: Pen, color: Color) -> None:
    pen.line([(0.5, 0.5), (0.5, 0.92)], 0.05, LEAF)
    pen.polygon(
        [*bow((0.52, 0.90), (0.60, 0.68), (0.84, 0.72)), *bow((0.84, 0.72), (0.78, 0.92), (0.52, 0.90))], LEAF
    )
    petals = [(0.5 + 0.2 * sin(i * pi / 3), 0.375 - 0.2 * cos(i * pi / 3)) for i in range(6)]
    for x, y in petals:
        pen.ellipse(x, y, 0.125, 0.125, color)
    for x, y in petals:
        pen.ellipse(x, y, 0.125, 0.125, color, rim=0)
    pen.ellipse(0.5, 0.375, 0.10, 0.10, CREAM, rim=0.035)


def _apple(pen: Pen, color: Color) -> None:
    pen.line(bow((0.50, 0.34), (0.50, 0.18), (0.42, 0.10)), 0.05, WOOD)
    pen.polygon(
        [*bow((0.53, 0.24), (0.58, 0.05), (0.84, 0.09)), *bow((0.84, 0.09), (0.78, 0.28), (0.53, 0.24))], LEAF
    )
    left = [
        *bow((0.5, 0.90), (0.40, 0.96), (0.30, 0.91)),
        *bow((0.30, 0.91), (0.06, 0.80), (0.07, 0.55)),
        *bow((0.07, 0.55), (0.09, 0.22), (0.5, 0.36)),
    ]
    pen.polygon([*left, *[(1 - x, y) for x, y in reversed(left)]], color)
    pen.line(arc(0.34, 0.58, 0.15, 0.17, 170, 245), 0.065, mix(color, WHITE, 0.7), rim=0)


def _mushroom(pen: Pen, color: Color) -> None:
    pen.polygon(
        [
            (0.37, 0.55),
            *bow((0.37, 0.55), (0.40, 0.8), (0.30, 0.93)),
            *bow((0.70, 0.93), (0.60, 0.8), (0.63, 0.55)),
        ],
        CREAM,
    )
    pen.polygon(
        [
            *arc(0.5, 0.53, 0.44, 0.46, 180, 360),
            *bow((0.94, 0.53), (0.94, 0.64), (0.8, 0.63)),
            *bow((0.2, 0.63), (0.06, 0.64), (0.06, 0.53)),
        ],
        color,
    )
    for x, y, r in ((0.50, 0.24, 0.085), (0.26, 0.43, 0.075), (0.74, 0.43, 0.075), (0.50, 0.50, 0.055)):
        pen.ellipse(x, y, r, r, WHITE, rim=0)


def _umbrella(pen: Pen, color: Color) -> None:
    pen.line([(0.5, 0.08), (0.5, 0.80), *arc(0.61, 0.80, 0.11, 0.11, 180, 10)], 0.045, WOOD)
    light = mix(color, WHITE, 0.4)
    edges = (0.05, 0.35, 0.65, 0.95)
    hem = [
        p
        for a, b in zip(edges[:0:-1], edges[-2::-1], strict=True)
        for p in arc((a + b) / 2, 0.54, 0.15, 0.09, 360, 180)
    ]
    pen.polygon([*arc(0.5, 0.54, 0.45, 0.42, 180, 360), *hem], color)
    middle = [*bow((0.35, 0.54), (0.36, 0.24), (0.5, 0.12)), *bow((0.5, 0.12), (0.64, 0.24), (0.65, 0.54))]
    pen.polygon([*middle, *arc(0.5, 0.54, 0.15, 0.09, 360, 180)], light, rim=0)
    pen.line(middle, 0.03, INK, rim=0)


def _skull(pen: Pen, color: Color) -> None:
    pen.polygon([(0.30, 0.62), (0.70, 0.62), (0.68, 0.93), (0.32, 0.93)], color)
    pen.ellipse(0.5, 0.41, 0.41, 0.345, color)
    pen.polygon([(0.33, 0.66), (0.67, 0.66), (0.665, 0.9), (0.335, 0.9)], color, rim=0)
    pen.ellipse(0.325, 0.45, 0.115, 0.125, INK, rim=0)
    pen.ellipse(0.675, 0.45, 0.115, 0.125, INK, rim=0)
    pen.polygon([(0.5, 0.54), (0.555, 0.65), (0.445, 0.65)], INK, rim=0)
    for x in (0.42, 0.5, 0.58):
        pen.line([(x, 0.78), (x, 0.95)], 0.04, INK, rim=0)
    pen.line(arc(0.5, 0.41, 0.31, 0.25, 215, 255), 0.05, mix(color, WHITE, 0.7), rim=0)


def _bomb(pen: Pen, color: Color) -> None:
    pen.line(bow((0.60, 0.36), (0.68, 0.12), (0.82, 0.20)), 0.045, WOOD)
    rays = [
        (0.80 + (0.16, 0.07)[i % 2] * sin(i * pi / 6), 0.20 - (0.16, 0.07)[i % 2] * cos(i * pi / 6))
        for i in range(12)
    ]
    pen.polygon(rays, FLAME, rim=0.03)
    pen.polygon([(0.50, 0.26), (0.70, 0.34), (0.64, 0.46), (0.45, 0.38)], STEEL)
    pen.ellipse(0.42, 0.60, 0.34, 0.34, color)
    pen.line(arc(0.42, 0.60, 0.22, 0.22, 185, 250), 0.065, mix(color, WHITE, 0.7), rim=0)


def _dagger(pen: Pen, color: Color) -> None:
    tilt = 40
    blade = [(0.5, -0.10), (0.635, 0.08), (0.615, 0.62), (0.385, 0.62), (0.365, 0.08)]
    pen.polygon(turned([(0.44, 0.66), (0.56, 0.66), (0.56, 0.98), (0.44, 0.98)], tilt), WOOD)
    pen.polygon(turned(blade, tilt), color)
    pen.polygon(
        turned([(0.5, -0.08), (0.62, 0.08), (0.605, 0.62), (0.5, 0.62)], tilt), mix(color, WHITE, 0.45), rim=0
    )
    pen.polygon(turned([(0.22, 0.60), (0.78, 0.60), (0.78, 0.69), (0.22, 0.69)], tilt), STEEL)
    ((x, y),) = turned([(0.5, 1.02)], tilt)
    pen.ellipse(x, y, 0.06, 0.06, STEEL)


def _axe(pen: Pen, color: Color) -> None:
    tilt = 24
    pen.polygon(turned([(0.54, 0.10), (0.66, 0.10), (0.66, 0.93), (0.54, 0.93)], tilt), WOOD)
    edge = bow((0.26, 0.74), (0.02, 0.44), (0.18, 0.10))
    head = [
        (0.82, 0.23),
        (0.82, 0.49),
        *bow((0.54, 0.49), (0.36, 0.52), (0.26, 0.74)),
        *edge,
        *bow((0.18, 0.10), (0.34, 0.26), (0.54, 0.23)),
    ]
    pen.polygon(turned(head, tilt), color)
    pen.polygon(
        turned([*edge, *bow((0.18, 0.10), (0.16, 0.44), (0.26, 0.74))], tilt), mix(color, WHITE, 0.7), rim=0
    )


DRAWINGS: dict[str, Callable[[Pen, Color], None]] = {
    "boat": _boat,
    "house": _house,
    "tree": _tree,
    "fish": _fish,
    "star": _star,
    "heart": _heart,
    "flower": _flower,
    "apple": _apple,
    "mushroom": _mushroom,
    "umbrella": _umbrella,
    "skull": _skull,
    "bomb": _bomb,
    "dagger": _dagger,
    "axe": _axe,
}


@cache
def sprite(kind: str, color: str, size: int) -> np.ndarray:
    """Draw one icon.

    Args:
        kind: A key of `DRAWINGS`.
        color: A key of `COLORS`.
        size: Side in pixels.

    Returns:
        Read-only uint8 RGBA [size, size, 4]; transparent outside the icon. The same array on every call.
    """
    pen = Pen(size)
    DRAWINGS[kind](pen, COLORS[color])
    pixels = np.array(pen.image.resize((size, size), Image.Resampling.LANCZOS))
    pixels.setflags(write=False)
    return pixels
