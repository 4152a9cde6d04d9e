"""A build that is interrupted while it writes a part makes that part again."""

import os
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dalle_ppo.iconworld import build
from dalle_ppo.iconworld.making import card, detector, training
from dalle_ppo.iconworld.world import World
from dalle_ppo.models import clip
from dalle_ppo.models.heads import binding
from dalle_ppo.models.heads.keras import convert


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


def half(write):
    """Writes the first half of what `write` writes, and is killed."""

    def cut(content, path, *rest):
        write(content, path, *rest)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        raise Killed

    return cut


def test_half_a_network_is_not_kept(tmp_path, monkeypatch):
    network, part = torch.nn.Linear(3, 3), tmp_path / "judge.safetensors"
    monkeypatch.setattr(build, "STAGES", ((part.name, lambda out, seed: training.save_half(network, part)),))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "save_tensors", half(training.save_tensors))
        build.run_stages(tmp_path, 0)
    assert not part.exists()
    build.run_stages(tmp_path, 0)
    assert torch.equal(load_file(part)["weight"], network.weight.half())


def test_a_detector_without_probes_is_not_kept(tmp_path, monkeypatch):
    """Its parts are stand-ins that take no time; they write and are killed in the same order."""
    world, probed = World(tmp_path), []
    monkeypatch.setattr(build, "scene_tokens", lambda out: None)
    monkeypatch.setattr(clip, "load_clip", lambda *_: SimpleNamespace(name="c", pretrained="local"))
    monkeypatch.setattr(detector, "training_set", lambda *_: (None, None))
    monkeypatch.setattr(detector, "train_detector", lambda embeddings, unsafe, out, seed: out.touch())
    monkeypatch.setattr(convert, "convert", lambda source, out, **_: out.write_text("no probes"))

    def killed(path, clip):
        raise Killed

    monkeypatch.setattr(build, "STAGES", (("detector.safetensors", build.build_detector),))
    monkeypatch.setattr(binding, "add_probes", killed)
    with pytest.raises(Killed):
        build.run_stages(tmp_path, 0)
    assert not world.detector.exists()
    monkeypatch.setattr(binding, "add_probes", lambda path, clip: probed.append(path.write_text("probes")))
    build.run_stages(tmp_path, 0)
    assert world.detector.read_text() == "probes" and len(probed) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"seed.txt", "detector.keras", world.detector.name}


@pytest.mark.parametrize("name", ["seed.txt", "CARD.md"])
def test_a_seed_and_a_card_are_written_whole(name, tmp_path, monkeypatch):
    """Half a seed would refuse every later build. Killed before the file gets its name."""
    stage = lambda out, seed: card.write_card(out / "CARD.md", [], seed)  # noqa: E731
    monkeypatch.setattr(build, "STAGES", (("CARD.md", stage),))
    replace = os.replace

    def killed(source, target):
        if target.name == name:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", killed)
        build.run_stages(tmp_path, 12)
    assert not (tmp_path / name).exists()
    build.run_stages(tmp_path, 12)
    assert (tmp_path / "seed.txt").read_text() == "12\n"
    assert (tmp_path / "CARD.md").read_text().startswith("# The built-in world")
