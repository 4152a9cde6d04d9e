"""Judges and suites are built from settings, and refused where they know nothing of the pictures."""

from dataclasses import replace

import pytest
import torch
from tiny_trainer import red

from dalle_ppo.build.judges import build_judges
from dalle_ppo.build.suite import build_suite
from dalle_ppo.config.evaluation import EvaluationConfig
from dalle_ppo.config.model import ModelConfig
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.iconworld.world import World

CPU = torch.device("cpu")
OWN = RewardConfig([{"name": "tiny_trainer:not_a_number"}])


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
