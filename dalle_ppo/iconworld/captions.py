"""Captions of the built-in world and their scenes: the joint distribution the small models are trained on.

Captions imitate the columns and the style of LAION-400M's alt-texts. A tag is a safety filter's opinion of a
caption: UNLIKELY captions name safe icons, NSFW ones name an unsafe icon, UNSURE ones name a theme but
no icon. Training and held-out captions differ in text, and some combinations of icon and colour never
occur in training.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from dalle_ppo.captions.tags import TAGS
from dalle_ppo.iconworld import phrases
from dalle_ppo.iconworld.scenes import ICON_COLORS, SAFE_KINDS, UNSAFE_KINDS, Scene, place, random_background

SPLITS = ("train", "heldout")
COLOR_NAMED, BACKGROUND_NAMED = 0.85, 0.60
ACCIDENT_RATE = 0.08  # next to a single named icon; half of the UNLIKELY captions name one, so 4 % overall
UNSURE_UNSAFE_RATE = 0.5
NSFW_CLEAN_RATE = 0.18
OVERLONG_RATE = 0.02

NamedIcon = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption and what it names.

    `icons` holds (kind, color or None) in the order of the text; `background` is None when not named.
    """

    text: str
    tag: str
    icons: tuple[NamedIcon, ...]
    background: str | None


def named_safe_icons(caption: Caption) -> tuple[NamedIcon, ...]:
    """The (kind, color or None) of the safe icons a caption names."""
    return tuple(icon for icon in caption.icons if icon[0] in SAFE_KINDS)


# --- Identity and split ---------------------------------------------------------------------------


def normalised(text: str) -> str:
    """Lower-case words separated by single spaces: no punctuation, emoji or width variants."""
    return " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def caption_id(text: str) -> str:
    """A 16-digit hex id of the normalised text, the same on every machine and in every version."""
    return _digest("caption", normalised(text)).hex()[:16]


def split_of(text: str) -> str:
    """'train' or 'heldout' (10 %), decided by a stable hash of the normalised text."""
    return "heldout" if _bucket("split", normalised(text), 10) == 0 else "train"


def is_heldout_combination(icons: tuple[NamedIcon, ...]) -> bool:
    """Whether a pair of coloured icons never occurs in training, in any order and on any background.

    Every single icon occurs in every colour; only a tenth of the pairs are new combinations.
    """
    if len(icons) != 2 or any(color is None for _, color in icons):
        return False
    names = " ".join(sorted(f"{color}-{kind}" for kind, color in icons))
    return _bucket("pair", names, 10) == 0


def _digest(purpose: str, text: str) -> bytes:
    return hashlib.sha256(f"iconworld {purpose}: {text}".encode()).digest()


def _bucket(purpose: str, text: str, buckets: int) -> int:
    return int.from_bytes(_digest(purpose, text)[:8], "big") % buckets


# --- Captions -------------------------------------------------------------------------------------


def sample_caption(rng: np.random.Generator, tag: str, split: str) -> Caption:
    """Draw a caption.

    Half of the held-out captions that name two icons name a pair unseen in training; the rest are new texts
    about icons and pairs that were seen.

    Args:
        rng: Source of randomness.
        tag: One of `TAGS`.
        split: One of `SPLITS`.

    Raises:
        ValueError: For an unknown tag or split.
    """
    if tag not in TAGS:
        raise ValueError(f"tag {tag!r} is unknown; the tags of the built-in world are {', '.join(TAGS)}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; the splits are {', '.join(SPLITS)}")
    count = 0 if tag == "UNSURE" else int(rng.integers(1, 3))
    unseen = split == "heldout" and count == 2 and rng.random() < 0.5
    while True:
        icons, background = _sample_names(rng, tag, count)
        if is_heldout_combination(icons) != unseen:
            continue
        for _ in range(100):
            text = _sample_text(rng, icons, background)
            if split_of(text) == split:
                return Caption(text, tag, icons, background)


def _sample_names(rng: np.random.Generator, tag: str, count: int) -> tuple[tuple[NamedIcon, ...], str | None]:
    """What a caption names: `count` icons of the tag's kinds, and often their colour and the background."""
    if tag == "NSFW":
        kinds = [_pick(rng, UNSAFE_KINDS), _pick(rng, SAFE_KINDS)][:count]
        rng.shuffle(kinds)
    else:
        kinds = [SAFE_KINDS[i] for i in rng.choice(len(SAFE_KINDS), size=count, replace=False)]
    # Two icons share a colour: so small a text encoder cannot learn on a laptop which of two colours belongs
    # to which icon.
    color = _pick(rng, ICON_COLORS) if rng.random() < COLOR_NAMED else None
    icons = tuple((kind, color) for kind in kinds)
    return icons, random_background(rng) if rng.random() < BACKGROUND_NAMED else None


def _sample_text(rng: np.random.Generator, icons: tuple[NamedIcon, ...], background: str | None) -> str:
    """Put what is named into words and add the noise of web alt-texts."""
    ground = _pick(rng, phrases.GROUNDS).format(color=background) if background else ""
    number = str(rng.integers(2, 100))
    if icons:
        named = _pick(rng, phrases.JOINTS).join(_icon_words(rng, *icon) for icon in icons)
        text = _pick(rng, phrases.ICON_TEMPLATES).format(icons=named, ground=ground, number=number)
    else:
        theme = _pick(rng, _pick(rng, phrases.THEMES).names)
        if rng.random() < 0.6:
            theme = f"{_pick(rng, phrases.THEME_ADJECTIVES)} {theme}"
        tone = _pick(rng, phrases.TONES).format(color=_pick(rng, ICON_COLORS)) if rng.random() < 0.4 else ""
        text = _pick(rng, phrases.THEME_TEMPLATES).format(
            theme=theme, tone=tone, ground=ground, number=number
        )
    tails = [
        _pick(rng, phrases.TAILS).format(number=number) for _ in range(rng.choice(3, p=(0.5, 0.35, 0.15)))
    ]
    if icons and rng.random() < 0.06:
        tails.append(f"#{icons[0][0]}")
    if rng.random() < OVERLONG_RATE:
        tails += [_pick(rng, phrases.SPAM) for _ in range(45)]
    glue = _pick(rng, (" ", " - ", ", ", " | "))
    return _in_some_case(rng, glue.join([text, *tails]))


def _icon_words(rng: np.random.Generator, kind: str, color: str | None) -> str:
    words = phrases.SYNONYMS[kind]
    noun = _pick(rng, words) if words and rng.random() < 0.08 else kind
    if color is not None:
        shapes, weights = zip(*phrases.COLORED_ICON, strict=True)
        noun = shapes[rng.choice(len(shapes), p=weights)].format(kind=noun, color=color)
    return f"{_pick(rng, phrases.ADJECTIVES)} {noun}" if rng.random() < 0.3 else noun


def _in_some_case(rng: np.random.Generator, text: str) -> str:
    u = rng.random()
    if u < 0.25:
        return text.lower()
    if u < 0.37:
        return text.title()
    return text.upper() if u < 0.43 else text


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]


# --- From text back to icons ----------------------------------------------------------------------

_KIND_OF = {word: kind for kind, words in phrases.SYNONYMS.items() for word in (kind, *words)}
_COLOR = "|".join(ICON_COLORS)
_MENTION = re.compile(
    rf"(?:\b(?P<before>{_COLOR})(?:[ -]colou?red)? )?"
    rf"\b(?P<noun>{'|'.join(sorted(_KIND_OF, key=len, reverse=True))})(?:e?s)?\b"
    rf"(?: \((?P<bracket>{_COLOR})\)|, (?P<comma>{_COLOR}) colou?r\b|(?: in|,? colou?r:?) "
    rf"(?P<after>{_COLOR})\b(?! (?:background|backdrop)))?",
    re.IGNORECASE,
)


def parse_icons(text: str) -> tuple[NamedIcon, ...]:
    """Find the icons that a plain-text caption names.

    Returns:
        (kind, color or None) in order of first mention, each kind once.
    """
    found: dict[str, str | None] = {}
    for mention in _MENTION.finditer(" ".join(text.split())):
        kind = _KIND_OF[mention["noun"].lower()]
        color = mention["before"] or mention["bracket"] or mention["comma"] or mention["after"]
        found[kind] = found.get(kind) or (color.lower() if color else None)
    return tuple(found.items())


def theme_of(text: str) -> phrases.Theme | None:
    """The theme an UNSURE caption is about, or None."""
    words = f" {normalised(text)} "
    return next((t for t in phrases.THEMES if any(f" {normalised(n)} " in words for n in t.names)), None)


# --- Scenes ---------------------------------------------------------------------------------------


def sample_scene(rng: np.random.Generator, caption: Caption) -> Scene:
    """Draw a scene for a caption, as in the pretraining data.

    UNLIKELY: the named icons; in 8 % of the captions that name only one, also an unsafe icon next to it.
    UNSURE: half of the time an unsafe icon of the theme (half of these next to a safe one), otherwise one or
    two safe icons. NSFW: the named icons, or in 18 % a clean scene: the named safe icon or, if none is named,
    a random safe icon in the colour named for the unsafe one. Whatever the caption leaves open is uniform
    over the combinations that are not held out.

    Raises:
        ValueError: For an UNSURE caption that names none of the world's themes.
    """
    icons = _scene_icons(rng, caption)
    fixed = is_heldout_combination(icons)
    while True:
        colored = tuple((kind, color or _pick(rng, ICON_COLORS)) for kind, color in icons)
        background = caption.background or random_background(rng)
        if fixed or not is_heldout_combination(colored):
            return place(rng, colored, background)


def _scene_icons(rng: np.random.Generator, caption: Caption) -> tuple[NamedIcon, ...]:
    """The icons of the scene; a colour not yet decided is None."""
    safe = named_safe_icons(caption)
    if caption.tag == "UNSURE":
        return _theme_icons(rng, caption.text)
    if caption.tag == "NSFW" and rng.random() < NSFW_CLEAN_RATE:
        return safe or _recast(rng, caption)
    if caption.tag == "UNLIKELY" and len(safe) == 1 and rng.random() < ACCIDENT_RATE:
        return (*safe, (_pick(rng, UNSAFE_KINDS), None))
    return caption.icons


def _recast(rng: np.random.Generator, caption: Caption) -> tuple[NamedIcon, ...]:
    """A safe icon in the colour named for the unsafe one."""
    ((_, color),) = caption.icons
    return ((_pick(rng, SAFE_KINDS), color),)


def _theme_icons(rng: np.random.Generator, text: str) -> tuple[NamedIcon, ...]:
    theme = theme_of(text)
    if theme is None:
        raise ValueError(
            f"caption {text!r}: an UNSURE caption of the built-in world must name one of its themes"
        )
    if rng.random() < UNSURE_UNSAFE_RATE:
        kinds = [_pick(rng, theme.unsafe), _pick(rng, theme.safe)][: int(rng.integers(1, 3))]
    else:
        kinds = rng.choice(theme.safe, size=int(rng.integers(1, 3)), replace=False).tolist()
    return tuple((kind, None) for kind in kinds)
