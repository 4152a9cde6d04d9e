"""`train --dry_run`: says what a run would need, and leaves nothing."""

import shutil
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_runs import TINY_SETTINGS
from tiny_trainer import TINY_CONFIG, tiny_trainer
from torch import nn

from dalle_ppo import train
from dalle_ppo.build import dry_run
from dalle_ppo.build.dry_run import checkpoint_bytes, disk_space, existing, network_bytes


def arguments(run_dir: Path, **settings) -> list[str]:
    given = {**TINY_SETTINGS, "run_dir": run_dir, "evaluation.at_end": False, **settings}
    return ["--dry_run", *(part for name, value in given.items() for part in (f"--{name}", str(value)))]


def test_it_prints_what_the_run_needs_and_writes_nothing(tmp_path, capsys):
    assert train.main(arguments(tmp_path / "deep" / "run")) == 0
    out = capsys.readouterr().out
    for part in (
        "4 iterations of 8 images",
        "reward nsfw, clip_similarity: tried on two images",
        "captions: read 8, such as '",
        "disk: checkpoints need 0.",
        "predicted peak of memory: ",
        "rewards 0.01",
        "dry run: nothing was trained or written",
    ):
        assert part in out
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_found_before_training(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(ValueError, match=r"^run_dir: .* has 0\.00 GB of free disk space, but 2 checkpoints"):
        disk_space(tiny_trainer(TINY_CONFIG, tmp_path / "run"))


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run.os, "access", lambda folder, mode: False)
    with pytest.raises(ValueError, match=r"^run_dir: .* cannot be written to; name another folder$"):
        disk_space(tiny_trainer(TINY_CONFIG, tmp_path / "run"))


def test_the_size_of_a_checkpoint_is_that_of_its_files(tmp_path):
    trainer = tiny_trainer(TINY_CONFIG, tmp_path)
    for learner in (trainer.actor, trainer.critic):
        for p in learner.module.parameters():
            p.grad = p.detach().clone()
        learner.step(0.0)
    saved = sum(file.stat().st_size for file in trainer.save().glob("*.safetensors"))
    # Each file also has a header of names and shapes, and each statistic counts its steps.
    assert checkpoint_bytes(trainer) <= saved <= 1.3 * checkpoint_bytes(trainer)


def test_networks_are_found_wherever_a_term_keeps_them():
    layers = [nn.Linear(10, 25, bias=False) for _ in range(5)]  # 1000 bytes each
    hidden = layers[0]

    class Holder:
        def __init__(self):
            self.inside = {"a": [layers[1]]}

        def call(self, images):
            return images

    def term(images, given=layers[2]):
        return hidden(images)

    found = [term, Holder().call, partial(torch.add, layers[3]), layers[0], lambda: never]  # noqa: F821
    assert network_bytes(found) == 4000


def test_disk_space_is_that_of_the_nearest_folder(tmp_path):
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert existing(tmp_path) == tmp_path
