"""Networks that processes hold in parts learn what whole ones learn; sharded_process.py is what each runs."""

import warnings

import pytest
from team_processes import end_of, start
from tiny_trainer import TINY, TINY_CONFIG, changed, tiny_trainer

from dalle_ppo.base.halving import Halving
from dalle_ppo.base.team import Team
from dalle_ppo.models.dalle.bart import BartDecoder
from dalle_ppo.models.dalle.memory_plan import MemoryPlan
from dalle_ppo.models.sharding import is_sharded
from dalle_ppo.training import memory
from dalle_ppo.training.anchor import GRADIENTS
from dalle_ppo.training.memory import predict_memory
from dalle_ppo.training.scoring import SCORING

WORK = "import sys, sharded_process; sharded_process.main(*sys.argv[1:])"


def check(size: int, folder, *cases: str) -> None:
    for code, out, err in end_of(start(size, WORK, folder / "run", *cases)):
        assert code == 0 and out == "done\n" and "Warning" not in err, err


def test_two_processes_learn_in_parts_what_one_learns(tmp_path):
    check(2, tmp_path, "all", "chunks")


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_a_checkpoint_does_not_know_that_networks_were_in_parts(size, tmp_path):
    check(size, tmp_path, "checkpoints", "samplers", "passing")


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_the_gradient_is_that_of_whole_networks(size, tmp_path):
    check(size, tmp_path, "all", "few", "low", "detached", "rloo", "chunks")
    check(size, tmp_path, "all:float32", "few:float32", "half:float32", "half_low:float32", "pairs:float32")


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"actor.adapter": "lora"}, "actor.adapter lora"),
        ({"critic.adapter": "lora"}, "critic.adapter lora"),
        ({"actor.optimizer": "adamw_8bit"}, "actor.optimizer adamw_8bit"),
        ({"critic.optimizer": "adamw_8bit"}, "critic.optimizer adamw_8bit"),
        ({"anchor.coef": 0.5}, "anchor.coef 0.5"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, named):
    with pytest.raises(
        ValueError, match=f"update.shard is full and {named}, which .*; set .* or update.shard"
    ):
        changed(TINY_CONFIG, {"update.shard": "full", **changes})


def test_a_single_process_holds_everything():
    trainer = tiny_trainer(changed(TINY_CONFIG, {"update.shard": "full"}))
    assert not is_sharded(trainer.networks.actor) and not trainer.means.halving.together


@pytest.mark.parametrize("shard, size, moved", [("full", 2, True), ("full", 1, False), ("none", 2, False)])
def test_a_dry_run_keeps_whole_networks_on_the_cpu_where_a_run_divides_them(shard, size, moved, monkeypatch):
    """Else it would run out of memory just where networks must be divided; copies are made there, too."""
    monkeypatch.setattr(BartDecoder, "cpu", lambda self: setattr(self, "was_moved", True))
    config = changed(TINY_CONFIG, {"update.shard": shard})
    networks = tiny_trainer(config, team=Team(0, size), dry=True).networks
    assert not is_sharded(networks.actor) and networks.critic is not None
    for network in (networks.reference, networks.actor):
        assert hasattr(network, "was_moved") == moved


def test_memory_that_runs_out_where_others_wait_is_not_tried_again():
    def work(size: int) -> int:
        raise MemoryError("full")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            RuntimeError, match=r"out of memory while scoring 8 .* lower update.microbatch_size"
        ):
            Halving((SCORING, GRADIENTS)).run(SCORING, "update.microbatch_size", 8, work)


def test_predicted_memory_falls_with_the_number_of_processes():
    trainer = tiny_trainer(changed(TINY_CONFIG, {"update.shard": "full", "update.microbatch_size": 4}))
    one, two = (
        predict_memory(trainer.config, trainer.networks, None, {"rewards": 8}, processes)
        for processes in (1, 2)
    )
    for part in ("optimiser", "gradients"):
        sizes = [sum(getattr(forecast, part).values()) for forecast in (one, two)]
        assert sizes[0] == pytest.approx(2 * sizes[1], abs=4)
    assert two.weights["actor"] == one.weights["actor"] // 2
    assert two.weights["rewards"] == 8 and two.weights["encoder"] == one.weights["encoder"]
    assert two.scoring > one.scoring and two.update["critic"] > one.update["critic"]


def test_layers_that_are_trained_are_whole_in_float32_where_the_reference_is_narrow(monkeypatch):
    monkeypatch.setattr(memory, "peak_bytes", lambda *_: 0)  # of activations, which takes seconds
    half = {"update.shard": "full", "update.dtype": "bfloat16", "model.frozen_dtype": "bfloat16"}
    config = changed(TINY_CONFIG, half)
    networks = tiny_trainer(config).networks
    numbers = {name: tensor.numel() for name, tensor in networks.actor.state_dict().items()}
    layers = sum(count for name, count in numbers.items() if name.startswith("layers."))
    head = sum(count for name, count in numbers.items() if name.startswith("lm_head."))
    passing = 4 * (2 * layers // TINY.num_layers + sum(numbers.values()) - layers)
    forecast = predict_memory(config, networks, None, None, 2)
    assert forecast.scoring == passing
    assert forecast.update["actor"] == 2 * passing
    assert forecast.update["critic"] == 2 * (passing - 4 * head + 4 * (TINY.width + 1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_evaluation_draws_from_whole_copies_of_actor_and_reference(dtype, monkeypatch):
    """In float32, whatever `rollout.dtype` is; both are there while one draws or its images are decoded."""
    monkeypatch.setattr(memory, "peak_bytes", lambda *_: 0)  # of activations, which takes seconds
    config = changed(TINY_CONFIG, {"update.shard": "full", "rollout.dtype": dtype})
    networks, processes = tiny_trainer(config).networks, 2
    weights = {name: value.numel() for name, value in networks.actor.state_dict().items()}
    whole, head = sum(weights.values()), weights["lm_head.weight"]
    in_training = 4 * whole if dtype == "float32" else 2 * (whole - head) + 4 * head
    for pixel_bytes in (1, 10**6):
        plan = MemoryPlan(
            50, 100, pixel_bytes, batch_size=16, microbatch_size=4, weight_bytes=30, kept_bytes=7
        )
        phases = predict_memory(config, networks, plan, None, processes).phases
        caches, decoding = 16 * 100 + 30 + 7, 4 * pixel_bytes + 7
        assert phases["drawing"] == max(caches + in_training, decoding)
        assert phases["evaluation"] == max(caches, decoding) + 2 * 4 * whole
    without = changed(config, {"evaluation.at_end": False})
    phases = predict_memory(without, networks, plan, None, processes).phases
    assert phases["evaluation"] == phases["drawing"]
