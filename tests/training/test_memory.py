"""The predicted memory, against closed forms and against what torch's profiler sees allocated."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny_models import tiny_bart
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer
from torch import nn

from dalle_ppo.base.team import ALONE, Team
from dalle_ppo.build import models
from dalle_ppo.build.trainer import build_networks
from dalle_ppo.models.dalle.bart import TextStates
from dalle_ppo.models.dalle.family import FrozenParts
from dalle_ppo.models.dalle.presets import BartConfig
from dalle_ppo.models.dalle.sampling import Prompts
from dalle_ppo.policy.rollout import Means
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.anchor import Anchor
from dalle_ppo.training.memory import MemoryForecast, gb, predict_memory
from dalle_ppo.training.objective import find_objective
from dalle_ppo.training.optim import make_learner
from dalle_ppo.training.scoring import chosen_rows, score_passes
from dalle_ppo.training.sharing import shared_score_passes
from dalle_ppo.training.traced_memory import peak_bytes
from dalle_ppo.training.update import Step, run_update, scoring_order

# Large enough that what is not counted, such as tables of a few numbers, does not matter.
SMALL = BartConfig(
    num_layers=2,
    num_heads=2,
    width=64,
    glu_width=96,
    text_vocab_count=20,
    image_vocab_count=400,
    num_codes=400,
    num_image_tokens=64,
    num_text_tokens=10,
)
SETTINGS = {"update.microbatch_size": 4, "update.minibatch_size": 8, "rollout.rollout_batch_size": 8}
LOW = {"update.gradient_checkpointing": True, "update.logits_chunk": 32}


def test_peak_of_a_chain_is_the_input_and_the_largest_two_steps():
    def chain(_) -> None:
        a = torch.zeros(1000)  # 4 kB
        b = torch.cat([a, a])  # 8 kB
        del a
        c = torch.cat([b, b, b])  # 24 kB
        del b
        c[:10] += 1  # a view makes nothing

    assert peak_bytes(chain, []) == 32_000


@pytest.mark.parametrize(("gradient", "tensors"), [(True, 6), (False, 2)])
def test_what_a_gradient_keeps_is_counted(gradient, tensors):
    def chain(_) -> None:
        x = torch.zeros(1000, requires_grad=gradient)
        for _ in range(5):
            x = x.exp()

    assert peak_bytes(chain, []) == tensors * 4_000


def test_weights_and_their_gradients_are_not_counted():
    def step(modules) -> None:
        for p in modules[0].parameters():
            p.detach().mul_(2.0)
            p.grad.mul_(2.0)

    assert peak_bytes(step, [nn.Linear(50, 100)]) == 0


def networks_of(config):
    torch.manual_seed(0)
    encoder, decoder = tiny_bart(SMALL)
    parts = FrozenParts(None, encoder, None)
    return build_networks(config, models.LoadedModel(decoder, decoder, parts, None, None))


def config_of(trainable: str, low: bool):
    return changed(TINY_CONFIG, {**SETTINGS, "actor.trainable": trainable, **(LOW if low else {})})


@cache
def forecast(trainable: str, low: bool) -> MemoryForecast:
    config = config_of(trainable, low)
    return predict_memory(config, networks_of(config), None)


def drawn(count: int) -> Experience:
    names, shape = ("",) * count, (count, SMALL.num_image_tokens)
    text = TextStates(
        torch.randn(count, SMALL.num_text_tokens, SMALL.width), torch.ones(count, 10, dtype=torch.bool)
    )
    return Experience(
        captions=names,
        tags=names,
        caption_ids=names,
        caption_index=torch.arange(count),
        tokens=torch.randint(SMALL.num_codes, shape),
        sampler_log_probs=torch.zeros(shape),
        images=torch.zeros(count, 1),
        prompts=Prompts(text, text.select(torch.tensor([0]))),
    )


def allocated(call, tmp_path) -> int:
    """Bytes that torch's allocator hands out at the worst moment of a call, by the profiler's record."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        call()
    seen.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    events = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    now = peak = 0
    for event in events:
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


class Half(Team):
    """One of two processes, to which the other one says what it says itself."""

    def __init__(self):
        super().__init__(0, 2)

    def gather(self, value):
        return [value, value]


def allocated_by_an_update(config, networks, tmp_path, team: Team = ALONE) -> int:
    """Bytes of a step after the first one, from which on the optimisers have their statistics."""
    learners = make_learner(networks.actor, config.actor), make_learner(networks.critic, config.critic)
    rows = score_passes(networks, drawn(config.rollout.rollout_batch_size), 4, keep_reference=True)
    credit = torch.randn(rows.tokens.shape)
    rows = replace(rows, advantages=credit, returns=credit)
    step = Step(*learners, 0.1, True, torch.Generator().manual_seed(0), Means(team))
    objective = find_objective(config.objective)
    run_update(networks, rows, objective, config, step)
    return allocated(lambda: run_update(networks, rows, objective, config, step), tmp_path)


@pytest.mark.parametrize(("trainable", "low"), [("cross_keys_values", False), ("all", True)])
def test_the_update_takes_what_is_predicted(trainable, low, tmp_path):
    config = config_of(trainable, low)
    predicted = forecast(trainable, low).phases["update"]
    measured = allocated_by_an_update(config, networks_of(config), tmp_path)
    assert predicted == pytest.approx(measured, rel=0.1)


def test_scoring_takes_what_is_predicted(tmp_path):
    networks, rows = networks_of(config_of("cross_keys_values", False)), drawn(4)
    predicted = forecast("cross_keys_values", False).phases["scoring"]
    measured = allocated(lambda: score_passes(networks, rows, 4), tmp_path)
    assert predicted == pytest.approx(measured, rel=0.1)


def test_each_of_two_processes_takes_what_is_predicted_for_two(tmp_path):
    """Its passes hold no more than its share of a minibatch, or of a batch."""
    config = changed(
        TINY_CONFIG,
        {
            "actor.trainable": "cross_keys_values",
            "rollout.rollout_batch_size": 8,
            "update.minibatch_size": 8,
            "update.microbatch_size": 8,
            "evaluation.num_captions": 8,
        },
    )
    networks = networks_of(config)
    phases = predict_memory(config, networks, None, None, processes=2).phases
    measured = allocated_by_an_update(config, networks, tmp_path, Half())
    assert phases["update"] == pytest.approx(measured, rel=0.1)
    rows, means = drawn(8), Means(Half())
    measured = allocated(lambda: shared_score_passes(networks, rows, 8, False, means), tmp_path)
    assert phases["scoring"] == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("dtype", "images", "bound"), [("float32", 8, 0.1), ("bfloat16", 2, 0.2)])
def test_scoring_takes_the_whole_batch_where_minibatches_are_smaller(dtype, images, bound, tmp_path):
    """But for bfloat16, where it takes the microbatches of the first epoch.

    There the forecast keeps the rounded weights of all networks until the end, and the run only of one.
    """
    settings = {
        "update.dtype": dtype,
        "update.minibatch_size": 2,
        "update.microbatch_size": 8,
        "rollout.rollout_batch_size": 8,
        "evaluation.num_captions": 2,
    }
    config = changed(TINY_CONFIG, settings)
    networks, rows = networks_of(config), drawn(8)
    predicted = predict_memory(config, networks, None).phases["scoring"]
    order = scoring_order(rows, find_objective("ppo"), config, 0)
    own = None if order is None else order[0]
    measured = allocated(lambda: score_passes(networks, rows, 8, order=own), tmp_path)
    assert predicted == pytest.approx(measured, rel=bound)
    assert max(len(part) for part in chosen_rows(rows, 8, own)) == images


def test_samples_that_are_more_than_a_batch_are_scored_together(tmp_path):
    settings = {"update.microbatch_size": 24, "rollout.rollout_batch_size": 8, "evaluation.num_captions": 20}
    config = changed(TINY_CONFIG, settings)
    trainer = tiny_trainer(config, shape=SMALL)
    predicted = predict_memory(config, trainer.networks, None).phases["scoring"]
    rows = drawn(len(trainer.sample_captions))
    assert len(rows) == 20
    assert predicted == pytest.approx(allocated(lambda: trainer.check_policy(rows), tmp_path), rel=0.1)


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_the_anchors_passes_are_predicted(temperature, tmp_path):
    """They compute the exact KL, though the loss of the drawn images has none."""
    config = changed(
        config_of("cross_keys_values", False),
        {
            "anchor.coef": 1.0,
            "anchor.num_images": 8,
            "anchor.minibatch_size": 4,
            "anchor.temperature": temperature,
            "kl.kl_coef": 0.0,
            "actor.entropy_coef": 0.0,
            "update.minibatch_size": 2,
        },
    )
    networks = networks_of(config)
    scored = score_passes(networks, drawn(8), 4, keep_reference=True)
    networks = replace(networks, anchor=Anchor(scored, 1.0, 4, temperature))
    predicted = predict_memory(config, networks, None).phases["update"]
    assert predicted == pytest.approx(allocated_by_an_update(config, networks, tmp_path), rel=0.1)


def test_weights_statistics_and_gradients_are_counted_by_what_is_trained():
    few, all_of_it = forecast("cross_keys_values", False), forecast("all", True)
    assert all_of_it.update["actor"] + all_of_it.logits < few.update["actor"] + few.logits
    numbers = SMALL.num_layers * 2 * SMALL.width**2
    assert few.gradients["actor"] == 4 * numbers and few.optimiser["actor"] == 8 * numbers
    assert all_of_it.gradients["actor"] == all_of_it.weights["actor"] == few.weights["reference"]
    assert all_of_it.optimiser["critic"] == 2 * all_of_it.weights["critic"]
    assert few.peak == few.always + max(few.phases.values())
    assert f"predicted peak of memory: {gb(few.peak)} GB" in str(few)
