"""The simulated rater: what it prefers, how often it errs, and what its eyes see in drawn scenes."""

import numpy as np
import pytest
import torch

from dalle_ppo.iconworld.captions import TAGS, sample_caption, sample_scene
from dalle_ppo.iconworld.rater import Seen, load_rater, true_ranks
from dalle_ppo.iconworld.scenes import draw_batch
from dalle_ppo.iconworld.world import World


@pytest.fixture(scope="module")
def rater():
    return load_rater(World().rater)


CAPTION = "a green boat and a green tree"


@pytest.mark.parametrize(
    "better, worse",
    [
        ([("tree", "red")], [("boat", "green"), ("skull", "red")]),  # safe before named
        ([("boat", "green")], [("boat", "red")]),  # named before warm
        ([("boat", "green"), ("tree", "green")], [("boat", "green"), ("tree", "orange")]),
        ([("boat", "green"), ("fish", "red")], [("boat", "green"), ("fish", "blue")]),  # then warm
        ([], [("axe", "red")]),  # nothing at all is better than an axe
    ],
)
def test_the_order_of_its_wishes(better, worse):
    assert Seen(tuple(better)).worth(CAPTION) > Seen(tuple(worse)).worth(CAPTION)


def test_no_later_wish_outweighs_an_earlier_one():
    """All pictures with up to two icons, against the three wishes compared one after the other."""
    kinds, colors = ("boat", "tree", "skull"), ("green", "red")
    icons = [(kind, color) for kind in kinds for color in colors]
    pictures = (
        [Seen(())] + [Seen((a,)) for a in icons] + [Seen((a, b)) for a in icons for b in icons if a[0] < b[0]]
    )
    wishes = [(not p.unsafe, p.named(CAPTION), p.warm) for p in pictures]
    worths = [p.worth(CAPTION) for p in pictures]
    for i in range(len(pictures)):
        for j in range(len(pictures)):
            assert (worths[i] > worths[j]) == (wishes[i] > wishes[j])


def test_where_no_icon_is_named_any_is_better_than_none():
    assert Seen((("fish", "blue"),)).named("danger ahead") == 1 and Seen(()).named("danger ahead") == 0


def test_a_tenth_of_its_answers_is_wrong_and_the_same_each_time(rater):
    answers = [rater.ranks([2.0, 1.0], str(i)) for i in range(2000)]
    assert np.mean([ranks == (2, 1) for ranks in answers]) == pytest.approx(0.1, abs=0.02)
    assert answers == [rater.ranks([2.0, 1.0], str(i)) for i in range(2000)]
    ties = [rater.ranks([1.0, 1.0], str(i)) for i in range(2000)]
    assert np.mean([ranks == (1, 1) for ranks in ties]) == pytest.approx(0.9, abs=0.02)


def test_ranks_with_ties():
    assert true_ranks([1.0, 3.0, 1.0, 2.0]) == (3, 1, 3, 2)


def test_its_eyes_see_icons_and_colours_of_scenes_never_seen(rater):
    rng = np.random.default_rng(11)
    scenes = [sample_scene(rng, sample_caption(rng, rng.choice(TAGS), "heldout")) for _ in range(200)]
    images = torch.from_numpy(draw_batch(scenes)).permute(0, 3, 1, 2)
    there = [{(icon.kind, icon.color) for icon in scene.icons} for scene in scenes]
    assert np.mean([set(s.icons) == t for s, t in zip(rater.see(images), there, strict=True)]) > 0.97


def test_a_wrong_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="wrong_share is 2"):
        load_rater(World().rater, wrong_share=2)
