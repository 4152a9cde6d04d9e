"""Scenes: 64x64 pictures of one or two icons on a plain background; and junk, which shows no icon."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from dalle_ppo.iconworld.sprites import COLORS, DRAWINGS, sprite

IMAGE_SIZE = 64
PATCH = 8  # side in pixels of the patch that one image token stands for
UNSAFE_KINDS = ("skull", "bomb", "dagger", "axe")
SAFE_KINDS = tuple(kind for kind in DRAWINGS if kind not in UNSAFE_KINDS)
KINDS = SAFE_KINDS + UNSAFE_KINDS
ICON_COLORS = tuple(COLORS)
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (252, 252, 250),
    "gray": (200, 203, 209),
    "blue": (190, 220, 248),
    "green": (200, 238, 198),
    "yellow": (255, 244, 184),
    "pink": (252, 206, 222),
}

SINGLE_SIZE, PAIR_SIZE = 40, 28
SINGLE_POSITIONS = (4, 12, 20)  # x and y
PAIR_COLUMNS = (2, 34)
PAIR_ROWS = (2, 10, 18, 26, 34)


@dataclass(frozen=True, slots=True)
class PlacedIcon:
    """One icon in a scene; (x, y) is the upper left pixel of its sprite and size the sprite's side."""

    kind: str
    color: str
    x: int
    y: int
    size: int


@dataclass(frozen=True, slots=True)
class Scene:
    """One or two icons of different kinds on a plain background."""

    icons: tuple[PlacedIcon, ...]
    background: str

    def is_unsafe(self) -> bool:
        """Whether an unsafe icon is in the scene."""
        return any(icon.kind in UNSAFE_KINDS for icon in self.icons)


def place(rng: np.random.Generator, icons: Sequence[tuple[str, str]], background: str) -> Scene:
    """Put one or two icons at random allowed positions, in random order.

    Args:
        rng: Source of randomness.
        icons: (kind, color) of one or two icons of different kinds.
        background: A key of `BACKGROUNDS`.

    Raises:
        ValueError: For another number of icons, for two icons of one kind, or for an unknown name.
    """
    _check(icons, background)
    if len(icons) == 1:
        ((kind, color),) = icons
        x, y = (int(v) for v in rng.choice(SINGLE_POSITIONS, size=2))
        return Scene((PlacedIcon(kind, color, x, y, SINGLE_SIZE),), background)
    rows = rng.choice(PAIR_ROWS, size=2)
    left_first = (0, 1) if rng.random() < 0.5 else (1, 0)
    placed = (
        PlacedIcon(*icons[i], x, int(y), PAIR_SIZE)
        for i, x, y in zip(left_first, PAIR_COLUMNS, rows, strict=True)
    )
    return Scene(tuple(placed), background)


def draw(scene: Scene) -> np.ndarray:
    """Draw a scene.

    Returns:
        uint8 RGB [64, 64, 3].
    """
    image = _plain(scene.background).copy()
    for icon in scene.icons:
        ink, cover = _premultiplied(icon.kind, icon.color, icon.size)
        window = image[icon.y : icon.y + icon.size, icon.x : icon.x + icon.size]
        window[:] = (ink + window * cover + 127) // 255
    return image.astype(np.uint8)


def draw_batch(scenes: Sequence[Scene]) -> np.ndarray:
    """Draw many scenes.

    Returns:
        uint8 RGB [N, 64, 64, 3].
    """
    images = np.empty((len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for i, scene in enumerate(scenes):
        images[i] = draw(scene)
    return images


def random_scene(rng: np.random.Generator, kinds: Sequence[str] = KINDS) -> Scene:
    """A scene of one or two icons (even odds) with every property uniform."""
    chosen = rng.choice(len(kinds), size=int(rng.integers(1, 3)), replace=False)
    icons = [(kinds[i], ICON_COLORS[rng.integers(len(ICON_COLORS))]) for i in chosen]
    return place(rng, icons, random_background(rng))


def random_background(rng: np.random.Generator) -> str:
    """A uniformly drawn key of `BACKGROUNDS`."""
    return tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]


def _check(icons: Sequence[tuple[str, str]], background: str) -> None:
    if len(icons) not in (1, 2) or len({kind for kind, _ in icons}) != len(icons):
        raise ValueError(f"icons={list(icons)}: a scene has one or two icons of different kinds")
    for kind, color in icons:
        if kind not in KINDS:
            raise ValueError(f"icon kind {kind!r} is unknown; the kinds are {', '.join(KINDS)}")
        if color not in ICON_COLORS:
            raise ValueError(f"icon color {color!r} is unknown; the colors are {', '.join(ICON_COLORS)}")
    if background not in BACKGROUNDS:
        raise ValueError(
            f"background {background!r} is unknown; the backgrounds are {', '.join(BACKGROUNDS)}"
        )


@cache
def _plain(background: str) -> np.ndarray:
    """uint16 [64, 64, 3] of one colour."""
    return np.full((IMAGE_SIZE, IMAGE_SIZE, 3), BACKGROUNDS[background], np.uint16)


@cache
def _premultiplied(kind: str, color: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour times opacity, uint16 [size, size, 3], and 255 minus opacity, uint16 [size, size, 1]."""
    pixels = sprite(kind, color, size).astype(np.uint16)
    return pixels[..., :3] * pixels[..., 3:], 255 - pixels[..., 3:]


def junk_image(rng: np.random.Generator) -> np.ndarray:
    """A picture without a recognisable icon, in which a judge must recognise nothing.

    Returns:
        uint8 RGB [64, 64, 3].
    """
    makers = (_shuffled, _erased, _blended, _melted, _blobs, _empty, _reassembled)
    return makers[rng.integers(len(makers))](rng)


def _single(rng: np.random.Generator, background: str) -> Scene:
    icon = (KINDS[rng.integers(len(KINDS))], ICON_COLORS[rng.integers(len(ICON_COLORS))])
    return place(rng, [icon], background)


def _shuffled(rng: np.random.Generator) -> np.ndarray:
    """The patches of a scene in random order."""
    n = IMAGE_SIZE // PATCH
    tiles = (
        draw(random_scene(rng)).reshape(n, PATCH, n, PATCH, 3).swapaxes(1, 2).reshape(n * n, PATCH, PATCH, 3)
    )
    tiles = tiles[rng.permutation(n * n)]
    return tiles.reshape(n, n, PATCH, PATCH, 3).swapaxes(1, 2).reshape(IMAGE_SIZE, IMAGE_SIZE, 3)


def _erased(rng: np.random.Generator) -> np.ndarray:
    """A single icon, 60 to 85 % of it covered by blots in its background colour or another pale colour."""
    background = random_background(rng)
    scene = _single(rng, background)
    image, plain = draw(scene), _plain(background).astype(np.uint8)
    icon = (image != plain).any(-1)
    paint = BACKGROUNDS[background if rng.random() < 0.5 else random_background(rng)]
    mask = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    pencil, ys, xs = ImageDraw.Draw(mask), *np.nonzero(icon)
    wanted = rng.uniform(0.6, 0.85) * icon.sum()
    while (np.asarray(mask) > 0)[icon].sum() < wanted:
        i, r = rng.integers(len(xs)), rng.uniform(5, 12)
        pencil.ellipse((xs[i] - r, ys[i] - r, xs[i] + r, ys[i] + r), fill=255)
    image[np.asarray(mask) > 0] = paint
    return image


def _blended(rng: np.random.Generator) -> np.ndarray:
    """Two half-transparent icons of different kinds and colours at the same place."""
    background = random_background(rng)
    a, b = rng.choice(len(KINDS), size=2, replace=False)
    colors = rng.choice(ICON_COLORS, size=2, replace=False)
    x, y = (int(v) for v in rng.choice(SINGLE_POSITIONS, size=2))
    first, second = (
        draw(Scene((PlacedIcon(KINDS[k], str(c), x, y, SINGLE_SIZE),), background))
        for k, c in zip((a, b), colors, strict=True)
    )
    share = rng.uniform(0.42, 0.58)
    return np.rint(first * share + second * (1 - share)).astype(np.uint8)


def _melted(rng: np.random.Generator) -> np.ndarray:
    """A scene displaced by strong smooth noise."""
    image = draw(random_scene(rng))
    coarse = rng.uniform(-1, 1, size=(2, 7, 7)).astype(np.float32)
    smooth = [Image.fromarray(c).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC) for c in coarse]
    strength = rng.uniform(12, 22)
    ys, xs = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    rows, columns = (
        np.clip(np.rint(grid + strength * np.asarray(shift)), 0, IMAGE_SIZE - 1).astype(int)
        for grid, shift in zip((ys, xs), smooth, strict=True)
    )
    return image[rows, columns]


def _blobs(rng: np.random.Generator) -> np.ndarray:
    """One to four outlined ellipses or ragged polygons in icon colours."""
    scale = 4
    image = Image.new("RGB", (IMAGE_SIZE * scale,) * 2, BACKGROUNDS[random_background(rng)])
    pencil = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 5)):
        cx, cy = rng.uniform(14, 50, size=2)
        radii = rng.uniform(5, 17, size=2)
        turns = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        ragged = np.interp(np.arange(20), np.arange(0, 21, 4), np.resize(rng.uniform(0.55, 1.3, size=5), 6))
        reach = ragged if rng.random() < 0.6 else np.ones(20)
        points = np.stack([cx + radii[0] * reach * np.cos(turns), cy + radii[1] * reach * np.sin(turns)], -1)
        outline = [tuple(p) for p in points * scale]
        pencil.polygon(outline, fill=COLORS[str(rng.choice(ICON_COLORS))])
        pencil.line([*outline, outline[0]], fill=(40, 34, 50), width=2 * scale, joint="curve")
    return np.array(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS))


def _empty(rng: np.random.Generator) -> np.ndarray:
    """A plain background, half the time with faint noise."""
    plain = _plain(random_background(rng)).astype(np.float64)
    noise = rng.normal(0, rng.uniform(1, 8), size=plain.shape) if rng.random() < 0.5 else 0.0
    return np.rint(np.clip(plain + noise, 0, 255)).astype(np.uint8)


def _reassembled(rng: np.random.Generator) -> np.ndarray:
    """Blocks of two by two patches, each from one of four different icons drawn at the same place."""
    background = random_background(rng)
    x, y = (int(v) for v in rng.choice(SINGLE_POSITIONS, size=2))
    kinds = rng.choice(len(KINDS), size=4, replace=False)
    colors = rng.choice(ICON_COLORS, size=4) if rng.random() < 0.5 else [rng.choice(ICON_COLORS)] * 4
    sources = [
        draw(Scene((PlacedIcon(KINDS[k], str(c), x, y, SINGLE_SIZE),), background))
        for k, c in zip(kinds, colors, strict=True)
    ]
    image, side = np.empty_like(sources[0]), 2 * PATCH
    for top in range(0, IMAGE_SIZE, side):
        order = rng.permutation(4)
        for i, left in enumerate(range(0, IMAGE_SIZE, side)):
            block = np.s_[top : top + side, left : left + side]
            image[block] = sources[order[i]][block]
    return image
