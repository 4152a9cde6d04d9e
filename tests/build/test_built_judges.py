"""Judges and suites are built from settings, and refused where they know nothing of the pictures."""

from dataclasses import replace

import pytest
import torch
from tiny_trainer import TINY_CONFIG, TinyClip, red, tiny_trainer

from dalle_ppo.build import rewards as build_rewards
from dalle_ppo.build.judges import build_judges, judges_sha256, try_judges
from dalle_ppo.build.suite import build_suite
from dalle_ppo.config.evaluation import EvaluationConfig
from dalle_ppo.config.model import ModelConfig
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.iconworld.world import World
from dalle_ppo.rewards.groups import pairwise, per_caption

CPU = torch.device("cpu")
OWN = RewardConfig([{"name": "tiny_trainer:not_a_number"}])


@pairwise
def brighter(first, second, caption):
    return (first.mean((1, 2, 3)) > second.mean((1, 2, 3))).float()


@per_caption()
def broken(images, caption):
    raise RuntimeError("no such model")


def config_with(*judges, **changes):
    return Config(reward=OWN, evaluation=EvaluationConfig(judges=list(judges), **changes))


def test_a_judges_value_has_no_weight():
    config = config_with({"name": "tiny_trainer:red", "weight": -3.0})
    judges = build_judges(config, World(), CPU)
    images = torch.rand(2, 3, 64, 64)
    assert list(judges) == ["tiny_trainer:red"]
    assert torch.equal(judges["tiny_trainer:red"](images, ["a", "bb"]).total, red(images, []))


@pytest.mark.slow
def test_a_judge_may_read_the_runs_clip():
    (judge,) = build_judges(config_with("clip_similarity"), World(), CPU).values()
    result = judge(torch.rand(2, 3, 64, 64), ["a boat", "a fish"])
    assert list(result.parts) == ["clip_similarity"] and result.total.abs().max() <= 1


def test_messages_name_the_setting():
    with pytest.raises(ValueError, match=r"evaluation.judges: module tiny_trainer has no function green"):
        build_judges(config_with("tiny_trainer:green"), World(), CPU)
    elsewhere = replace(config_with("nsfw"), model=ModelConfig(path="elsewhere"))
    with pytest.raises(ValueError, match=r"evaluation.judges: .*detector of judge nsfw: builtin"):
        build_judges(elsewhere, None, CPU)


def test_a_judge_of_the_rewards_kind_is_pointed_out():
    config = Config(evaluation=EvaluationConfig(judges=[{"name": "nsfw", "detector": "missing.safetensors"}]))
    with pytest.warns(UserWarning, match=r"nsfw is also a term"), pytest.raises(ValueError, match=r"missing"):
        build_judges(config, World(), CPU)


def test_the_suite_belongs_to_the_built_in_world():
    assert build_suite(config_with(), None) is None
    elsewhere = replace(config_with(suite="iconworld"), model=ModelConfig(path="elsewhere"))
    with pytest.raises(ValueError, match=r"evaluation.suite: iconworld .* model.path elsewhere"):
        build_suite(elsewhere, None)


# --- judges that compare the images of a caption; training draws one image per caption


def test_a_judge_may_compare_a_captions_images(monkeypatch):
    """The oracle: the brighter of two images wins; they are as far apart as their cosine says."""
    monkeypatch.setattr(build_rewards, "load_clip", lambda *args: TinyClip())
    config = config_with("diversity", f"{__name__}:brighter")
    assert config.rollout.samples_per_caption == 1
    judges = build_judges(config, World(), CPU)
    assert judges_sha256(config, World()).keys() == {"judges.diversity.clip"}
    images = torch.stack([torch.full((3, 4, 4), level) for level in (0.1, 0.2, 0.9, 0.4)])
    wins, apart = (judge(images, ["a", "a", "b", "b"]).total for judge in reversed(judges.values()))
    assert wins.tolist() == [0, 1, 1, 0]
    embedded = TinyClip().embed_images(images)
    expected = [1 - embedded[i] @ embedded[i + 1] for i in (0, 0, 2, 2)]
    torch.testing.assert_close(apart, torch.tensor(expected))


@pytest.mark.parametrize("at_end", [True, False])
def test_such_a_judge_needs_enough_images_in_evaluations(at_end):
    words = r"evaluation\.judges: evaluation\.samples_per_caption is 1, but the judge .* at least 2$"
    with pytest.raises(ValueError, match=words):
        config_with("diversity", samples_per_caption=1, at_end=at_end)
    config = config_with(f"{__name__}:brighter", samples_per_caption=1, at_end=at_end)
    with pytest.raises(ValueError, match=words):
        build_judges(config, World(), CPU)


def test_such_a_judge_is_tried_on_images_of_one_caption():
    """The run draws captions of which each has one image only."""
    trainer = tiny_trainer(TINY_CONFIG)
    assert len({record.text for record in trainer.sample_captions[:2]}) == 2
    judges = build_judges(config_with("tiny_trainer:red", f"{__name__}:broken"), World(), CPU)
    with pytest.raises(ValueError, match=r"evaluation\.judges: reward .*broken raised.*no such model"):
        try_judges(trainer, judges)
