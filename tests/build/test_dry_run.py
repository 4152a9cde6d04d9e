"""`train --dry_run`: says what a run would need, and leaves nothing."""

import shutil
import warnings
from collections import namedtuple
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_runs import TINY_SETTINGS
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer
from torch import nn

from dalle_ppo import train
from dalle_ppo.build import room
from dalle_ppo.build.dry_run import network_bytes
from dalle_ppo.build.room import check_room, existing
from dalle_ppo.config.command_line import to_yaml
from dalle_ppo.runs.checkpoints import load_checkpoint
from dalle_ppo.runs.space import STATE_BYTES
from dalle_ppo.training import anchor
from dalle_ppo.training.checkpointing import expected_bytes


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


def test_the_anchor_is_read_but_not_drawn(tmp_path, monkeypatch, capsys):
    """Drawing it takes minutes on a CPU."""
    config = changed(TINY_CONFIG, {"anchor.coef": 1.0, "anchor.num_images": 24})
    drawn = tiny_trainer(config)
    monkeypatch.setattr(anchor, "collect", lambda *_: pytest.fail("the anchor was drawn"))
    dry = tiny_trainer(config, dry=True)
    for name in ("captions", "tags", "caption_ids"):
        assert getattr(dry.networks.anchor.images, name) == getattr(drawn.networks.anchor.images, name)
    assert dry.progress.images == drawn.progress.images == 24
    train.check_captions(dry, [])  # several processes compare what they have read
    assert train.main(arguments(tmp_path / "run", **{"anchor.coef": 1.0})) == 0
    assert "dry run: nothing was trained" in capsys.readouterr().out


def with_free(monkeypatch, free: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 10**12 - free, free))


def test_a_full_disk_is_found_before_training(tmp_path, monkeypatch):
    with_free(monkeypatch, 1000)
    with pytest.raises(ValueError, match=r"a checkpoint needs \d+ MB, but only 0 MB of the disk are free"):
        check_room(tiny_trainer(TINY_CONFIG, tmp_path / "run"))


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(room.os, "access", lambda folder, mode: False)
    with pytest.raises(ValueError, match=r"^run_dir: .* cannot be written to; name another folder$"):
        check_room(tiny_trainer(TINY_CONFIG, tmp_path / "run"))


def test_what_is_there_counts_and_what_is_too_little_for_all_only_warns(tmp_path, monkeypatch):
    """As in the run itself: two checkpoints are kept, and a third is written before the oldest goes."""
    trainer = tiny_trainer(TINY_CONFIG, tmp_path / "run")
    one = check_room(trainer).one
    with_free(monkeypatch, int(2.5 * one))
    with pytest.warns(UserWarning, match="the next 3 checkpoints need"):
        assert check_room(trainer).more == 3
    old = tmp_path / "run" / "checkpoints" / "step_000002"
    old.mkdir(parents=True)
    (old / "policy.safetensors").write_bytes(bytes(one))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_room(trainer).more == 2
    assert check_room(trainer, replaced=True).more == 3, "the old ones go first"
    trainer.config = replace(trainer.config, keep_best="reward_mean")
    assert check_room(trainer, replaced=True).more == 4, "the best one is kept beside the newest"
    trainer.progress.iteration = trainer.config.num_iterations
    with_free(monkeypatch, 0)
    assert check_room(trainer).line() == "disk: no checkpoint is left to write"


@pytest.mark.parametrize("settings", [{}, {"actor.adapter": "lora", "critic.adapter": "lora"}])
def test_the_expected_size_of_a_checkpoint_is_that_of_its_files(settings, tmp_path):
    """Of adapted networks only adapters are saved. Statistics count before there are any."""
    if settings:
        pytest.importorskip("peft")
    trainer = tiny_trainer(changed(TINY_CONFIG, settings), tmp_path)
    expected = expected_bytes(trainer.actor, trainer.critic)
    for learner in (trainer.actor, trainer.critic):
        for p in learner.module.parameters():
            p.grad = p.detach().clone() if p.requires_grad else None
        learner.step(0.0)
    assert expected_bytes(trainer.actor, trainer.critic) == expected
    folder = trainer.save()
    saved = sum(file.stat().st_size for file in folder.iterdir())
    tensors = sum(t.nbytes for group in load_checkpoint(folder).tensors.values() for t in group.values())
    assert saved <= expected < STATE_BYTES + 2 * tensors
    # Besides the room for heads and `state.json`; each statistic also counts its steps.
    assert 0.8 * tensors < expected - STATE_BYTES <= tensors


def test_a_dry_run_finds_what_resuming_would(tmp_path, capsys):
    run = tmp_path / "run"
    config = tiny_trainer(TINY_CONFIG, run).config
    for name in ("step_000002", "step_000004"):
        (run / "checkpoints" / name).mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(config))
    trainer, flags = tiny_trainer(TINY_CONFIG, run), {"resume": True, "overwrite": False}
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.warns(UserWarning, match="checkpoint ignored"),
        pytest.raises(ValueError, match=r"no checkpoint in .* is complete"),
    ):
        train.dry(trainer, None, "", flags)
    assert sorted(tmp_path.rglob("*")) == before
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").write_text("".join(f'{{"iteration": {n}}}\n' for n in range(25)))
    with pytest.raises(ValueError, match=r"25 iterations in metrics\.jsonl but no checkpoint"):
        train.dry(trainer, None, "", flags)


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
