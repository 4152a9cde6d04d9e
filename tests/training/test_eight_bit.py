"""The optimiser with states of 8 bits: refused where it does not work, and saved like any other.

What steps is bitsandbytes. Since 0.50 it steps on CPUs too, slowly, so that its states can be tested here.
"""

import importlib.util

import pytest
import torch
from tiny_trainer import TINY_CONFIG, changed
from torch import nn

from dalle_ppo.runs.checkpoints import (
    flatten_optimizer,
    latest_checkpoint,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from dalle_ppo.training.checkpointing import restore_learners
from dalle_ppo.training.eight_bit import check_optimizers, make_adamw_8bit, state_bytes
from dalle_ppo.training.optim import Learner, decay_groups, make_adamw

CUDA = torch.device("cuda")


@pytest.mark.parametrize("section", ["actor", "critic"])
def test_it_is_refused_on_a_cpu(section):
    config = changed(TINY_CONFIG, {f"{section}.optimizer": "adamw_8bit"})
    with pytest.raises(
        ValueError, match=rf"^{section}.optimizer is adamw_8bit, .* set {section}\.optimizer to"
    ):
        check_optimizers(config, torch.device("cpu"))
    check_optimizers(TINY_CONFIG, torch.device("cpu"))


def test_a_missing_package_is_named(monkeypatch):
    config = changed(TINY_CONFIG, {"critic.optimizer": "adamw_8bit"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"bitsandbytes is not installed; run pip install bitsandbytes"):
        check_optimizers(config, CUDA)
    check_optimizers(TINY_CONFIG, CUDA)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 1))


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    module(torch.randn(8, 64, generator=generator)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def eight_bit(module: nn.Module) -> torch.optim.Optimizer:
    pytest.importorskip("bitsandbytes")
    return make_adamw_8bit(decay_groups(module.parameters(), 0.1), 1e-2, eps=1e-5)


def test_it_steps_nearly_as_adamw_does():
    start, ours, theirs = network(), network(), network()
    optimizers = eight_bit(ours), make_adamw(theirs.parameters(), 1e-2, 0.1, eps=1e-5)
    for seed in range(5):
        step(ours, optimizers[0], seed)
        step(theirs, optimizers[1], seed)
    moved = (theirs[0].weight - start[0].weight).norm()
    assert (ours[0].weight - theirs[0].weight).norm() < 0.1 * moved


def test_a_resumed_run_takes_the_same_step(tmp_path):
    module, again = network(), network()
    optimizer = eight_bit(module)
    step(module, optimizer, 1)
    tensors, state = flatten_optimizer(optimizer)
    save_checkpoint(tmp_path, 1, {"policy_optimizer": tensors}, {"policy_optimizer": state}, keep=1)
    saved = load_checkpoint(latest_checkpoint(tmp_path))
    again.load_state_dict(module.state_dict())
    resumed = eight_bit(again)
    restore_optimizer(resumed, saved.tensors["policy_optimizer"], saved.state["policy_optimizer"])
    for seed in (2, 3):
        step(module, optimizer, seed)
        step(again, resumed, seed)
    for ours, expected in zip(again.parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_the_state_of_another_optimiser_is_refused(tmp_path):
    module = network()
    optimizers = make_adamw(module.parameters(), 1e-2, 0.1), eight_bit(module)
    for made, other, name in (
        (optimizers[0], optimizers[1], "adamw"),
        (optimizers[1], optimizers[0], "adamw_8bit"),
    ):
        step(module, made, 1)
        tensors, state = flatten_optimizer(made)
        groups = {"policy": module.state_dict(), "policy_optimizer": tensors}
        folder = save_checkpoint(tmp_path, 1, groups, {"policy_optimizer": state}, keep=1)
        with pytest.raises(ValueError, match=rf"^actor.optimizer is .*; resume with actor.optimizer {name}$"):
            restore_learners(load_checkpoint(folder), Learner(module, other, 1.0), None)


def test_predicted_bytes_are_those_of_the_states():
    module = network()
    eight, whole = eight_bit(module), make_adamw(module.parameters(), 1e-2, 0.1)
    for optimizer, name in ((whole, "adamw"), (eight, "adamw_8bit")):
        step(module, optimizer, 1)
        tensors, _ = flatten_optimizer(optimizer)
        held = sum(t.nbytes for key, t in tensors.items() if "qmap" not in key and not key.endswith("step"))
        assert state_bytes(list(module.parameters()), name) == held
