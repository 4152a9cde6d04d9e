"""The reward is tried on two images before a run: mistakes are found at once, and nothing else changes."""

import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import tiny_arguments
from tiny_trainer import TINY_CONFIG, NoWriter, changed, tiny_trainer

from dalle_ppo import train
from dalle_ppo.build.trial import try_reward

OWN = """
import random
import numpy as np
import torch

got = []

def good(images, captions, metadata):
    got.append((images, captions, metadata))
    random.random(), np.random.rand(), torch.rand(1)
    return images.mean(dim=(1, 2, 3))

def raises(images, captions):
    return captions[0]["text"]

def column(images, captions):
    return images.mean(dim=(1, 2, 3))[:, None]

def one_number(images, captions):
    return images.mean().item()

def nan(images, captions):
    return [0.0, float("nan")]

def words(images, captions):
    return ["good", "bad"]

def writes(images, captions):
    images.zero_()
    return [0.0] * len(images)
"""
TRIED = "tried on two images in "


@pytest.fixture
def own(tmp_path, monkeypatch):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_trial_of_a_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own_trial_of_a_test", raising=False)
    return "own_trial_of_a_test"


def trainer_with(name, **settings):
    return tiny_trainer(changed(TINY_CONFIG, {"reward.terms": [{"name": name}], **settings}))


def random_state():
    numpy = np.random.get_state()
    return random.getstate(), numpy[1].tolist(), numpy[2:], torch.get_rng_state().tolist()


def test_a_term_gets_what_it_gets_in_the_run(own):
    trainer, seen = trainer_with(f"{own}:good"), []
    term = trainer.reward.terms[-1]
    trainer.reward._functions[-1] = lambda *given: seen.append(given) or term.function(*given)
    line = try_reward(trainer)
    assert line.startswith(f"reward nsfw, clip_similarity, {own}:good: {TRIED}") and "\n" not in line
    ((images, captions, metadata),) = seen
    drawn = trainer.collect().images
    assert images.shape == (2, *drawn.shape[1:]) and images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    records = trainer.sample_captions[:2]
    assert captions == [record.text for record in records]
    assert metadata == [{"tag": record.tag, "id": record.id} for record in records]


def test_a_trial_takes_no_random_numbers(own):
    tried, untried = trainer_with(f"{own}:good"), trainer_with(f"{own}:good")
    before = random_state()
    try_reward(tried)
    assert random_state() == before
    first, second = tried.iterate(NoWriter()), untried.iterate(NoWriter())
    timed = ("seconds", "images_per_second", "memory")
    for metrics in (first, second):
        for name in [name for name in metrics if name.startswith(timed)]:
            del metrics[name]
    assert first == second


BROKEN = {
    "raises": "raised TypeError",
    "column": r"returned total of shape \(2, 1\); it must be \(2,\)",
    "one_number": r"returned total of shape \(\)",
    "nan": "returned total with 1 of 2 values not finite",
    "words": "returned list; it must return a tensor",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_term_is_named_in_one_line(own, name):
    with pytest.raises(ValueError, match=f"reward {own}:{name} {BROKEN[name]}.* before training") as error:
        try_reward(trainer_with(f"{own}:{name}"))
    assert "\n" not in str(error.value)


def test_where_batches_may_be_left_out_it_is_a_warning(own):
    trainer = trainer_with(f"{own}:nan", **{"reward.bad_result": "skip"})
    with pytest.warns(UserWarning, match=f"reward {own}:nan returned total"):
        assert "failed on two images" in try_reward(trainer)


def test_one_caption_is_enough(own):
    trainer = trainer_with(f"{own}:writes")
    trainer.sample_captions = trainer.sample_captions[:1]
    assert TRIED in try_reward(trainer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_random_numbers_of_the_gpu_are_kept_too(own):
    trainer = tiny_trainer(replace(TINY_CONFIG, device="cuda"))
    before = torch.cuda.get_rng_state()
    try_reward(trainer)
    assert torch.cuda.get_rng_state().equal(before)


def test_a_run_with_a_broken_reward_touches_nothing(own, tmp_path, cli):
    terms = f'[{{name: "{own}:column"}}]'
    run_dir = tmp_path / "run"
    outcome = cli(train.main, *tiny_arguments(run_dir, reward__terms=terms))
    assert outcome.code == 2 and f"reward {own}:column returned" in outcome.error and not run_dir.exists()


def test_a_run_says_that_the_reward_was_tried(tiny_run):
    (line,) = [line for line in tiny_run.outcome.out.splitlines() if TRIED in line]
    assert line.startswith("reward nsfw, clip_similarity: ")
