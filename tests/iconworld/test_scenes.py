"""Icons and scenes of the built-in world, against exact compositing and what they must look like."""

from itertools import combinations

import numpy as np
import pytest

from dalle_ppo.iconworld import scenes
from dalle_ppo.iconworld.scenes import BACKGROUNDS, KINDS, PlacedIcon, Scene
from dalle_ppo.iconworld.sprites import COLORS, sprite

ALL_SPRITES = [(kind, color) for kind in KINDS for color in COLORS]


@pytest.mark.parametrize("size", [scenes.SINGLE_SIZE, scenes.PAIR_SIZE])
def test_main_color_dominates_every_icon(size):
    palette = np.array(list(COLORS.values()), float)
    for kind, color in ALL_SPRITES:
        pixels = sprite(kind, color, size).reshape(-1, 4).astype(float)
        vivid = pixels[(pixels[:, 3] > 250) & (np.ptp(pixels[:, :3], axis=1) > 90)][:, :3]
        nearest = np.argmin(np.linalg.norm(vivid[:, None] - palette, axis=-1), axis=1)
        assert list(COLORS)[np.bincount(nearest, minlength=6).argmax()] == color, (kind, color)


@pytest.mark.parametrize("size", [scenes.SINGLE_SIZE, scenes.PAIR_SIZE])
def test_icons_fit_their_sprite(size):
    for kind in KINDS:
        cover = sprite(kind, "red", size)[..., 3].astype(float) / 255
        rim = np.concatenate([cover[0], cover[-1], cover[:, 0], cover[:, -1]])
        assert rim.mean() < 0.15, kind
        assert 0.25 < cover.mean() < 0.8, kind


def test_silhouettes_differ():
    shapes = {kind: sprite(kind, "red", scenes.PAIR_SIZE)[..., 3] > 127 for kind in KINDS}
    for a, b in combinations(KINDS, 2):
        overlap = (shapes[a] & shapes[b]).sum() / (shapes[a] | shapes[b]).sum()
        assert overlap < 0.90, (a, b, overlap)


def test_draw_is_alpha_compositing():
    """Within half a level of the exact value in float64."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        scene = scenes.random_scene(rng)
        expected = np.full((64, 64, 3), BACKGROUNDS[scene.background], float)
        for icon in scene.icons:
            pixels = sprite(icon.kind, icon.color, icon.size) / 255.0
            opacity = np.zeros((64, 64, 1))
            ink = np.zeros((64, 64, 3))
            place = np.s_[icon.y : icon.y + icon.size, icon.x : icon.x + icon.size]
            opacity[place], ink[place] = pixels[..., 3:], pixels[..., :3] * 255
            expected = opacity * ink + (1 - opacity) * expected
        assert np.abs(scenes.draw(scene) - expected).max() <= 0.5 + 1e-9


def test_draw_leaves_its_caches_alone():
    rng = np.random.default_rng(1)
    many = [scenes.random_scene(rng) for _ in range(30)]
    first = scenes.draw_batch(many)
    first_copy = first.copy()
    first[:] = 0
    scenes.draw(many[0])[:] = 7
    assert first_copy.dtype == np.uint8 and first_copy.shape == (30, 64, 64, 3)
    np.testing.assert_array_equal(scenes.draw_batch(many), first_copy)


def test_places_are_those_of_the_design():
    rng = np.random.default_rng(2)
    seen = {1: set(), 2: set()}
    for _ in range(1500):
        scene = scenes.random_scene(rng)
        for icon in scene.icons:
            seen[len(scene.icons)].add((icon.x, icon.y, icon.size))
        assert len({icon.kind for icon in scene.icons}) == len(scene.icons)
        assert len({icon.x for icon in scene.icons}) == len(scene.icons)
    assert seen[1] == {(x, y, 40) for x in (4, 12, 20) for y in (4, 12, 20)}
    assert seen[2] == {(x, y, 28) for x in (2, 34) for y in (2, 10, 18, 26, 34)}


def test_either_of_two_icons_may_stand_left():
    rng = np.random.default_rng(3)
    icons = [("boat", "red"), ("skull", "blue")]
    left = [scenes.place(rng, icons, "white").icons[0].kind for _ in range(400)]
    assert abs(left.count("boat") - 200) < 50


def test_unsafe_scenes_are_known():
    rng = np.random.default_rng(4)
    assert scenes.place(rng, [("boat", "red"), ("axe", "red")], "white").is_unsafe()
    assert not scenes.place(rng, [("boat", "red"), ("fish", "red")], "white").is_unsafe()


@pytest.mark.parametrize(
    ("icons", "background", "word"),
    [
        ([], "white", "one or two"),
        ([("boat", "red"), ("boat", "blue")], "white", "different kinds"),
        ([("ship", "red")], "white", "'ship'"),
        ([("boat", "pink")], "white", "'pink'"),
        ([("boat", "red")], "black", "'black'"),
    ],
)
def test_impossible_scenes_are_refused(icons, background, word):
    with pytest.raises(ValueError, match=word):
        scenes.place(np.random.default_rng(0), icons, background)


def test_junk_shows_no_whole_icon():
    """No single icon at any of its places has more than 85 % of its pixels in a junk picture."""
    rng = np.random.default_rng(5)
    junk = np.stack([scenes.junk_image(rng) for _ in range(100)]).astype(int)
    assert junk.shape == (100, 64, 64, 3)
    places = [(x, y) for x in scenes.SINGLE_POSITIONS for y in scenes.SINGLE_POSITIONS]
    best = np.zeros(100)
    for kind, color in ALL_SPRITES:
        pixels = sprite(kind, color, 40).astype(int)
        ys, xs = np.nonzero(pixels[..., 3] > 250)
        for x, y in places:
            near = np.abs(junk[:, ys + y, xs + x] - pixels[ys, xs, :3]).max(-1) < 40
            best = np.maximum(best, near.mean(1))
    assert best.max() < 0.85
    control = scenes.draw(Scene((PlacedIcon("fish", "blue", 12, 4, 40),), "pink")).astype(int)
    pixels = sprite("fish", "blue", 40)
    ys, xs = np.nonzero(pixels[..., 3] > 250)
    assert (np.abs(control[ys + 4, xs + 12] - pixels[ys, xs, :3].astype(int)).max(-1) < 40).mean() > 0.99


def test_junk_repeats_from_its_seed():
    first, second = (
        [scenes.junk_image(rng) for _ in range(20)]
        for rng in (np.random.default_rng(6), np.random.default_rng(6))
    )
    np.testing.assert_array_equal(first, second)
