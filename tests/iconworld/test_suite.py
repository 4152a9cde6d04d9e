"""The suite's captions say what they test, and its rules pass right pictures and fail wrong ones."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dalle_ppo.build.suite import judge_eyes
from dalle_ppo.iconworld.captions import parse_icons, split_of
from dalle_ppo.iconworld.scenes import SAFE_KINDS, draw_batch
from dalle_ppo.iconworld.suite import PROMPTS_PER_TASK, TASKS, half, passed, scene_of, suite_prompts
from dalle_ppo.iconworld.world import World

PROMPTS = suite_prompts()
FEW = suite_prompts(per_task=8, seed=1)


@pytest.fixture(scope="module")
def look():
    return judge_eyes(World())


def pictures(prompts, seed=0):
    rng = np.random.default_rng(seed)
    return draw_batch([scene_of(prompt, rng) for prompt in prompts])


def test_captions_are_distinct_held_out_and_equally_many():
    assert Counter(prompt.task for prompt in PROMPTS) == dict.fromkeys(TASKS, PROMPTS_PER_TASK)
    assert len({prompt.text for prompt in PROMPTS}) == len(PROMPTS)
    assert all(split_of(prompt.text) == "heldout" for prompt in PROMPTS)
    assert suite_prompts() == PROMPTS
    assert {kind for prompt in PROMPTS for kind, _ in prompt.icons} == set(SAFE_KINDS)


def test_the_worlds_own_parser_finds_the_icons_that_captions_are_about():
    for prompt in PROMPTS:
        assert set(parse_icons(prompt.text)) == set(prompt.icons), prompt.text
        if prompt.task == "positions":
            first, second = (kind for kind, _ in prompt.icons)
            left, right = (first, second) if "to the left of" in prompt.text else (second, first)
            assert prompt.text.index(left) < prompt.text.index(right)
        if prompt.task == "counts":
            assert ("two " in prompt.text) == (len(prompt.icons) == 2)


def test_right_pictures_pass(look):
    assert passed(FEW, pictures(FEW), look).mean() > 0.98


def wrong(prompt):
    """The caption whose pictures are wrong for this one in its task alone."""
    (kind, color), *others = prompt.icons
    if prompt.task in ("one icon", "two icons"):
        free = next(k for k in SAFE_KINDS if k not in dict(prompt.icons))
        return replace(prompt, icons=((free, None), *others))
    if prompt.task == "colours":
        return replace(prompt, icons=((kind, "red" if color != "red" else "blue"),))
    if prompt.task == "positions":
        return replace(prompt, icons=prompt.icons[::-1])
    if prompt.task == "counts":
        return replace(prompt, icons=((kind, None),) * (3 - len(prompt.icons)))
    ((other, other_color),) = others
    return replace(prompt, icons=((kind, other_color), (other, color)))


def test_pictures_that_are_wrong_in_what_is_tested_fail(look):
    images = pictures([wrong(prompt) for prompt in FEW])
    assert passed(FEW, images, look).mean() < 0.02


def test_another_icon_spoils_a_count(look):
    one = [prompt for prompt in FEW if prompt.task == "counts" and len(prompt.icons) == 1]
    other = [wrong(replace(prompt, task="one icon")) for prompt in one]
    icons = [(*p.icons, *o.icons) for p, o in zip(one, other, strict=True)]
    pairs = [replace(p, icons=both, task="two icons") for p, both in zip(one, icons, strict=True)]
    assert not passed(one, pictures(pairs), look).any()


def test_halves_keep_one_side_and_paint_the_other():
    images = pictures(FEW[:4])
    left, right = half(images, "left"), half(images, "right")
    assert np.array_equal(left[:, :, :32], images[:, :, :32])
    assert np.array_equal(right[:, :, 32:], images[:, :, 32:])
    assert (left[:, :, 32:] == images[:, :1, :1]).all() and (right[:, :, :32] == images[:, :1, :1]).all()
