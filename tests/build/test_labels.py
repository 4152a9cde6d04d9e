"""Pictures that people see: also a run without a detector in its reward has its unsafe ones flagged."""

import re
import shutil
from dataclasses import replace

import numpy as np
import torch
from tiny_runs import tiny_arguments

from dalle_ppo import generate
from dalle_ppo.build import trainer as builder
from dalle_ppo.build.captions import SAMPLES_STREAM, build_captions
from dalle_ppo.build.labels import LabelOptions, open_drawer
from dalle_ppo.build.simulated import read_pictures
from dalle_ppo.build.trainer import build_trainer
from dalle_ppo.build.unsafe import unsafe_detector
from dalle_ppo.config.command_line import load_config, parse_command_line, to_yaml
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.iconworld.judge import load_judge, look
from dalle_ppo.iconworld.world import World
from dalle_ppo.policy.rollout import NoiseSource, collect
from dalle_ppo.preferences.store import Store
from dalle_ppo.rewards.base import RewardResult
from dalle_ppo.training.guards import flagged_unsafe

PREFERENCE = [{"name": "preference", "reward_model": "not_read.safetensors"}]


def without_detector(tiny_run, run):
    """The shared run, as if it had learned from answers alone."""
    shutil.copytree(tiny_run.run_dir, run)
    config = replace(load_config(run / "config.yaml"), reward=RewardConfig(terms=PREFERENCE))
    (run / "config.yaml").write_text(to_yaml(config))
    return run


def test_pictures_are_flagged_though_the_reward_has_no_detector(tiny_run, tmp_path):
    """The oracle is the judge, another network than the detector."""
    run, store = without_detector(tiny_run, tmp_path / "run"), Store(tmp_path / "store")
    open_drawer(run, store, LabelOptions(device="cpu")).draw_many(range(16))
    images = store.images()
    flagged = np.array([image.flagged for image in images.values()])
    unsafe = look(load_judge(World().judge), read_pictures(store, images)).unsafe
    assert 0 < flagged.sum() < len(flagged) and np.mean(flagged == unsafe) > 0.85


def test_generate_blurs_what_a_run_without_detector_draws(tiny_run, tmp_path, cli):
    run = without_detector(tiny_run, tmp_path / "run")
    command = ("a black skull", "--model", run, "--out", tmp_path / "skulls.png", "--num_images", 9)
    outcome = cli(generate.main, *command)
    assert outcome.code == 0 and "images are not checked" not in outcome.out
    assert int(re.search(r"(\d+) of 9 images flagged unsafe", outcome.out)[1]) > 0


def test_without_any_detector_it_is_said(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(to_yaml(Config(reward=RewardConfig(terms=PREFERENCE))))
    assert unsafe_detector(str(tmp_path), None, torch.device("cpu")) is None
    assert "images are not checked: this run's reward has no nsfw term" in capsys.readouterr().out


def test_samples_of_a_run_without_detector_are_blurred(tmp_path, monkeypatch):
    """What the trainer is given finds unsafe what the judge does, and loading it changes no random number."""
    terms = "[{name: jpeg_size}]"
    config = parse_command_line(tiny_arguments(tmp_path / "run", reward__terms=terms), "train", "")[0]
    torch.manual_seed(7)
    trainer, state = build_trainer(config, tmp_path / "run"), torch.get_rng_state()
    monkeypatch.setattr(builder, "unsafe_detector", lambda *arguments: None)
    torch.manual_seed(7)
    assert build_trainer(config, tmp_path / "run").detect is None
    assert torch.equal(torch.get_rng_state(), state)
    result = RewardResult(torch.zeros(96), {})
    captions = build_captions(config, 1, SAMPLES_STREAM, "train").next_batch(96)
    drawn = collect(trainer.family, trainer.actor.module, captions, 1, NoiseSource(0, "samples"), 4.0)
    flagged = flagged_unsafe(drawn.images, result, config, trainer.detect)
    unsafe = look(load_judge(World().judge), drawn.images).unsafe
    assert 0 < flagged.sum() < 96 and np.mean(flagged == unsafe) > 0.85
    assert not flagged_unsafe(drawn.images, result, config).any()
