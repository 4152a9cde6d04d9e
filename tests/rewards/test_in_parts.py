"""A reward that runs out of memory is computed for fewer images, down to what its terms let be separated."""

import pytest
import torch

from dalle_ppo.base.halving import Halving, OutOfMemory
from dalle_ppo.rewards.base import Term
from dalle_ppo.rewards.combine import CombinedReward
from dalle_ppo.rewards.in_parts import score_in_parts

IMAGES = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def reward_of(limit: int, needed: int, tried: list[list[str]]) -> CombinedReward:
    """Brightness of at most `limit` images; the term says how many images of a caption it needs."""

    def brightness(images, captions):
        tried.append(captions)
        if len(images) > limit:
            raise torch.OutOfMemoryError("injected")
        return images.mean((1, 2, 3))

    return CombinedReward([Term("mine", brightness, images_per_caption=needed)])


def scored(reward: CombinedReward, captions: list[str], halving: Halving) -> torch.Tensor:
    metadata = [{} for _ in captions]
    with pytest.warns(UserWarning, match="computing the reward of 8 images"):
        return score_in_parts(reward, IMAGES, captions, metadata, halving).total


@pytest.mark.filterwarnings("ignore:out of memory")
@pytest.mark.parametrize("limit, sizes", [(4, [8, 4, 4]), (1, [8, 4, 2] + 8 * [1])])
def test_a_captions_images_are_separated_if_no_term_compares_them(limit, sizes):
    tried, halving = [], Halving()
    total = scored(reward_of(limit, 1, tried), ["a"] * 8, halving)
    assert torch.equal(total, IMAGES.mean((1, 2, 3)))
    assert [len(captions) for captions in tried] == sizes


def test_they_stay_together_while_they_fit():
    tried = []
    total = scored(reward_of(5, 1, tried), [*"abbaabab"], Halving())
    assert torch.equal(total, IMAGES.mean((1, 2, 3)))
    assert tried[1:] == [["a"] * 4, ["b"] * 4]


def test_a_term_that_compares_them_fails_at_once_and_says_how_many_there_are():
    tried = []
    reward = reward_of(4, 2, tried)
    with pytest.raises(OutOfMemory, match=r"computing the reward of 8 images at a time"):
        score_in_parts(reward, IMAGES, ["a"] * 8, [{}] * 8, Halving())
    assert len(tried) == 1


def test_what_fits_for_one_reward_does_not_bind_another():
    """Evaluations and training have other terms and groups, but remember together what fits."""
    halving = Halving()
    scored(reward_of(4, 2, []), [*"aaaabbbb"], halving)
    assert halving.sizes == {"computing the reward of": 4}
    tried = []
    with pytest.warns(UserWarning):
        score_in_parts(reward_of(2, 1, tried), IMAGES, [*"aaaabbbb"], [{}] * 8, halving)
    assert {len(captions) for captions in tried} == {4, 2}
