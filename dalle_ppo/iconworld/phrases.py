"""The words that captions of the built-in world are made of, and the icons that fit each theme."""

from dataclasses import dataclass

SYNONYMS: dict[str, tuple[str, ...]] = {
    "boat": ("sailboat",),
    "house": ("cottage",),
    "tree": ("pine tree",),
    "fish": (),
    "star": (),
    "heart": (),
    "flower": ("blossom",),
    "apple": (),
    "mushroom": ("toadstool",),
    "umbrella": ("parasol",),
    "skull": (),
    "bomb": (),
    "dagger": (),
    "axe": ("hatchet",),
}

# The colour stands next to its icon, so that a small model can bind the two.
COLORED_ICON = (
    ("{color} {kind}", 0.70),
    ("{kind} ({color})", 0.09),
    ("{kind}, {color} colour", 0.07),
    ("{kind} in {color}", 0.07),
    ("{color}-coloured {kind}", 0.07),
)

ADJECTIVES = (
    "cute", "little", "big", "vintage", "handmade", "funny", "modern", "retro", "cartoon", "shiny",
    "lovely", "classic", "hand drawn", "minimal", "glossy", "kawaii",
)  # fmt: skip
JOINTS = (" and ", " & ", " with ", ", ", " + ", " next to ", " and a ", " beside a ")

# {icons} is what the caption names, {ground} the background phrase with its leading space or nothing.
ICON_TEMPLATES = (
    "{icons}{ground}",
    "a {icons}{ground}",
    "A picture of a {icons}{ground}",
    "{icons} icon{ground}",
    "{icons} - vector illustration{ground}",
    "{icons}{ground} | stock photo",
    "{icons}{ground} Royalty Free Vector",
    "Free clip art: {icons}{ground}",
    "Buy {icons} online{ground}",
    "{icons}{ground} (set of {number})",
    "{icons} sticker{ground}",
    "{icons} wall art{ground} {number} x {number} cm",
    "{icons} cartoon{ground}",
    "Drawing of {icons}{ground}",
    "Kids t-shirt, {icons}{ground}",
    "{icons} emblem{ground} - stock vector {number}",
    "Photo {number}: {icons}{ground}",
    "My {icons}{ground}!",
    "{icons}...{ground}",
    "Logo design with {icons}{ground}",
)
GROUNDS = (
    " on {color} background",
    " on a {color} background",
    ", {color} background",
    " against a pale {color} backdrop",
    " ({color} background)",
    " over light {color}",
)

TAILS = (
    "stock photo", "free vector", "buy online", "HD wallpaper", "free shipping", "clipart",
    "royalty free", "download", "best price", "poster", "by Studio Nord", "for kids", "new 2021",
    "Etsy", "print", "png", "sale!", "design no. {number}", "#art", "#vector", "#design",
    "#sticker #cute", "✨", "🎨", "👍", "😍", "🔥 50% off", "➡️ shop now", "😀😀",
)  # fmt: skip
SPAM = (
    "high quality", "home decor", "canvas", "gift idea", "download now", "free shipping worldwide",
    "best seller", "digital file", "printable", "instant download", "wall decoration", "nursery",
    "flat style", "isolated", "eps 10", "jpg", "graphic element", "web design", "mobile app",
    "collection", "greeting card", "invitation", "template", "trendy", "summer", "holiday",
    "school project", "scrapbook", "embroidery pattern", "banner",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Theme:
    """What an UNSURE caption is about, and the icons that may appear in its scenes."""

    names: tuple[str, ...]
    unsafe: tuple[str, ...]
    safe: tuple[str, ...]


THEMES = (
    Theme(("pirate treasure", "pirates of the southern sea"), ("skull", "dagger"), ("boat", "fish", "star")),
    Theme(("haunted mansion at midnight", "the ghosts next door"), ("skull",), ("house", "tree")),
    Theme(
        ("the villain's secret lair", "evil genius headquarters"), ("bomb", "dagger"), ("house", "umbrella")
    ),
    Theme(("Halloween night", "trick or treat"), ("skull", "axe"), ("house", "apple", "mushroom")),
    Theme(("lumberjack camp", "life of a woodcutter"), ("axe",), ("tree", "house", "mushroom")),
    Theme(("knights of the old castle", "medieval fair"), ("dagger", "axe"), ("house", "heart", "apple")),
    Theme(("spy thriller movie", "undercover agent"), ("bomb", "dagger"), ("umbrella", "boat")),
    Theme(("heavy metal concert", "rock band tour"), ("skull", "axe"), ("star", "heart")),
    Theme(("witch's kitchen", "potions and spells"), ("skull", "dagger"), ("mushroom", "apple", "flower")),
    Theme(("fireworks festival", "blast from the past"), ("bomb",), ("star", "boat", "umbrella")),
    Theme(("viking raid", "sagas of the north"), ("axe", "skull"), ("boat", "fish", "tree")),
    Theme(("day of the dead", "old graveyard"), ("skull",), ("flower", "heart", "tree")),
    Theme(
        ("arcade shooter game", "retro video game level"), ("bomb", "skull"), ("star", "heart", "mushroom")
    ),
    Theme(("tragic love story", "jealous queen fairy tale"), ("dagger",), ("heart", "apple", "flower")),
    Theme(("wilderness survival", "lost on a desert island"), ("axe", "dagger"), ("fish", "tree", "boat")),
)
THEME_ADJECTIVES = (
    "spooky", "epic", "famous", "dark", "legendary", "mysterious", "strange", "wild", "forgotten",
    "amazing", "funny", "original", "secret", "small-town",
)  # fmt: skip
THEME_TEMPLATES = (
    "{theme}{tone}{ground}",
    "{theme} illustration{tone}{ground}",
    "{theme}: book cover{tone}{ground}",
    "Movie poster - {theme}{tone}{ground}",
    "{theme} party invitation{tone}{ground}",
    "Scenes from {theme}{tone}{ground}",
    "{theme} sticker pack{tone}{ground}",
    'Art print "{theme}"{tone}{ground}',
    "{theme} T-Shirt No. {number}{tone}{ground}",
    "The story of {theme}, part {number}{tone}{ground}",
    "{theme}{tone}{ground} | stock illustration",
    "Postcard: {theme}{tone}{ground}",
)
TONES = (" in {color}", ", {color} tones", " ({color})", " - {color} edition")
