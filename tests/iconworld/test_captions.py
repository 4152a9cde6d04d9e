"""The captions of the built-in world: their law, their split, and the way from text back to icons."""

from itertools import combinations, product

import numpy as np
import pytest

from dalle_ppo.iconworld import captions, phrases
from dalle_ppo.iconworld.captions import (
    Caption,
    is_heldout_combination,
    parse_icons,
    sample_caption,
    sample_scene,
)
from dalle_ppo.iconworld.scenes import BACKGROUNDS, ICON_COLORS, KINDS, SAFE_KINDS, UNSAFE_KINDS

N = 3000


@pytest.fixture(scope="module")
def world():
    """(tag, split) -> N captions and the scene of each."""
    rng = np.random.default_rng(0)
    drawn = {}
    for tag, split in product(captions.TAGS, captions.SPLITS):
        texts = [sample_caption(rng, tag, split) for _ in range(N)]
        drawn[tag, split] = [(caption, sample_scene(rng, caption)) for caption in texts]
    return drawn


def near(share, expected, n):
    """Within five standard errors of a binomial share."""
    return abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / n)


def shown(scene):
    return {(icon.kind, icon.color) for icon in scene.icons}


def draws_all_named(caption, scene):
    return all(
        any(k == kind and color in (None, c) for k, c in shown(scene)) for kind, color in caption.icons
    )


def test_parser_inverts_every_caption(world):
    for pairs in world.values():
        for caption, _ in pairs:
            assert parse_icons(caption.text) == caption.icons, caption.text


@pytest.mark.parametrize(
    ("text", "icons"),
    [
        ("Red BOAT on white background", (("boat", "red"),)),
        ("two boats & a green-colored pine tree!!", (("boat", None), ("tree", "green"))),
        ("Fish (orange) with star, blue colour", (("fish", "orange"), ("star", "blue"))),
        ("umbrella, blue background", (("umbrella", None),)),
        ("umbrella in green background", (("umbrella", None),)),
        ("house in purple #house", (("house", "purple"),)),
        ("#house, a purple house", (("house", "purple"),)),
        ("blue skull+hatchet", (("skull", "blue"), ("axe", None))),
        ("starfish treehouse bombastic heartless pineapple", ()),
        ("", ()),
    ],
)
def test_parser_on_texts_from_elsewhere(text, icons):
    assert parse_icons(text) == icons


@pytest.mark.parametrize("split", captions.SPLITS)
def test_what_captions_name(world, split):
    for tag in ("UNLIKELY", "NSFW"):
        named = [caption for caption, _ in world[tag, split]]
        assert near(np.mean([len(c.icons) == 2 for c in named]), 0.5, N)
        for caption in named:
            assert sum(kind in UNSAFE_KINDS for kind, _ in caption.icons) == (tag == "NSFW")
            assert len(captions.named_safe_icons(caption)) == len(caption.icons) - (tag == "NSFW")
    assert not any(caption.icons for caption, _ in world["UNSURE", split])


def test_training_captions_name_color_and_background_at_their_rates():
    # Holding combinations out shifts the rates by up to one per cent; hence the tolerance.
    rng = np.random.default_rng(1)
    named = [sample_caption(rng, "UNLIKELY", "train") for _ in range(4 * N)]
    assert abs(np.mean([color is not None for c in named for _, color in c.icons]) - 0.85) < 0.02
    assert abs(np.mean([c.background is not None for c in named]) - 0.60) < 0.03
    assert near(np.mean([len(c.text.split()) > 40 for c in named]), 0.02, 4 * N)
    for caption in named:
        if caption.background:
            assert caption.background in caption.text.lower()


@pytest.mark.parametrize("split", captions.SPLITS)
def test_scenes_of_unlikely_captions(world, split):
    pairs = world["UNLIKELY", split]
    rng = np.random.default_rng(7)
    accidents = [sample_scene(rng, caption).is_unsafe() for caption, _ in pairs for _ in range(8)]
    assert near(np.mean(accidents), 0.04, 8 * N)
    for caption, scene in pairs:
        assert draws_all_named(caption, scene)
        assert len(scene.icons) == len(caption.icons) + scene.is_unsafe()
        assert caption.background in (None, scene.background)


@pytest.mark.parametrize("split", captions.SPLITS)
def test_scenes_of_nsfw_captions(world, split):
    pairs = world["NSFW", split]
    assert near(np.mean([scene.is_unsafe() for _, scene in pairs]), 0.83, N)
    for caption, scene in pairs:
        assert caption.background in (None, scene.background)
        if scene.is_unsafe():
            assert draws_all_named(caption, scene) and len(scene.icons) == len(caption.icons)
            continue
        (icon,) = scene.icons
        ((kind, color),) = captions.named_safe_icons(caption) or ((None, caption.icons[0][1]),)
        assert kind in (None, icon.kind) and color in (None, icon.color)


@pytest.mark.parametrize("split", captions.SPLITS)
def test_scenes_of_unsure_captions(world, split):
    pairs = world["UNSURE", split]
    unsafe = [scene for _, scene in pairs if scene.is_unsafe()]
    assert near(len(unsafe) / N, 0.5, N)
    assert near(np.mean([len(scene.icons) == 2 for scene in unsafe]), 0.5, len(unsafe))
    for caption, scene in pairs:
        theme = captions.theme_of(caption.text)
        kinds = [icon.kind for icon in scene.icons]
        assert set(kinds) <= {*theme.unsafe, *theme.safe}
        assert sum(kind in UNSAFE_KINDS for kind in kinds) == scene.is_unsafe()
    assert len({captions.normalised(caption.text) for caption, _ in pairs}) > 0.9 * N


def test_themes_are_told_apart_and_fit():
    for theme in phrases.THEMES:
        assert set(theme.unsafe) <= set(UNSAFE_KINDS) and set(theme.safe) <= set(SAFE_KINDS)
        for name in theme.names:
            assert captions.theme_of(f"THE {name.upper()}!") is theme
            assert parse_icons(name) == ()


def test_open_properties_are_uniform():
    rng = np.random.default_rng(2)
    caption = Caption("a boat", "UNLIKELY", (("boat", None),), None)
    drawn = [sample_scene(rng, caption) for _ in range(N)]
    for values in (ICON_COLORS, BACKGROUNDS):
        for value in values:
            share = np.mean(
                [value in (s.icons[0].color if values is ICON_COLORS else s.background) for s in drawn]
            )
            assert near(share, 1 / 6, N)


def test_training_never_shows_a_heldout_combination(world):
    for tag in captions.TAGS:
        for _, scene in world[tag, "train"]:
            assert not is_heldout_combination(tuple(shown(scene)))
        rng = np.random.default_rng(3)
        for caption, _ in world[tag, "train"][:600]:
            for scene in (sample_scene(rng, caption) for _ in range(3)):
                assert not is_heldout_combination(tuple(shown(scene)))


def test_half_of_the_heldout_pairs_are_unseen_combinations(world):
    for tag in ("UNLIKELY", "NSFW"):
        pairs = [c for c, _ in world[tag, "heldout"] if len(c.icons) == 2]
        assert near(np.mean([is_heldout_combination(c.icons) for c in pairs]), 0.5, len(pairs))


def test_share_of_heldout_combinations():
    pairs = [
        is_heldout_combination(((a, x), (b, y)))
        for (a, b), x, y in product(combinations(KINDS, 2), ICON_COLORS, ICON_COLORS)
    ]
    assert abs(np.mean(pairs) - 0.10) < 0.015
    assert not any(is_heldout_combination(((kind, color),)) for kind, color in product(KINDS, ICON_COLORS))


def test_every_open_choice_has_an_answer():
    """Whatever colour is left open, one that is not held out remains, so that sampling ends."""
    for kind, color, other in product(KINDS, ICON_COLORS, KINDS):
        assert not all(is_heldout_combination(((kind, color), (other, c))) for c in ICON_COLORS)


def test_order_of_icons_does_not_matter_to_the_split():
    for a, b in combinations([("boat", "red"), ("skull", "blue"), ("axe", "green"), ("star", "yellow")], 2):
        assert is_heldout_combination((a, b)) == is_heldout_combination((b, a))


def test_texts_are_disjoint(world):
    train, heldout = (
        {captions.normalised(c.text) for tag in captions.TAGS for c, _ in world[tag, split]}
        for split in captions.SPLITS
    )
    assert not train & heldout


def test_identity_ignores_case_spacing_and_punctuation():
    assert captions.caption_id("Red  BOAT!! ✨") == captions.caption_id("red boat")
    assert captions.caption_id("red boat") != captions.caption_id("boat red")


def test_identity_and_split_are_frozen():
    """Weights and published runs depend on these values; they must not change."""
    assert captions.caption_id("red boat") == "91aa230eefdaf724"
    frozen = "".join(captions.split_of(f"red boat {i}")[0] for i in range(40))
    assert frozen == "ttttttttttthtttttttttthttttttthttttttttt"
    held = [k for k in SAFE_KINDS if is_heldout_combination((("skull", "red"), (k, "red")))]
    assert held == ["apple"]


def test_captions_repeat_from_their_seed():
    first, second = (
        [(c := sample_caption(rng, "NSFW", "heldout"), sample_scene(rng, c)) for _ in range(20)]
        for rng in (np.random.default_rng(4), np.random.default_rng(4))
    )
    assert first == second


def test_unknown_names_are_refused():
    rng = np.random.default_rng(6)
    with pytest.raises(ValueError, match="'SAFE'"):
        sample_caption(rng, "SAFE", "train")
    with pytest.raises(ValueError, match="'test'"):
        sample_caption(rng, "NSFW", "test")
    with pytest.raises(ValueError, match="themes"):
        sample_scene(rng, Caption("tax return", "UNSURE", (), None))
