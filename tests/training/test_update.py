"""The update: gradients against the formula written out, microbatches, and the classic mistakes of PPO."""

import copy
import math
from dataclasses import fields, replace

import pytest
import torch
from tiny_models import TINY, randomise, tiny_bart, tiny_prompts

from dalle_ppo.config.actor import ActorConfig
from dalle_ppo.config.critic import CriticConfig
from dalle_ppo.config.kl import KlConfig
from dalle_ppo.config.objectives import ppo
from dalle_ppo.config.rollout import RolloutConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.config.update import UpdateConfig
from dalle_ppo.models.dalle.critic import Critic
from dalle_ppo.models.dalle.family import DalleFamily, FrozenParts
from dalle_ppo.models.dalle.sampling import sample
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.noise import noise_keys
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.objective import find_objective
from dalle_ppo.training.optim import Learner, learning_rates, make_learner
from dalle_ppo.training.scoring import Networks, score_passes
from dalle_ppo.training.update import Step, run_update

POLICY = PolicySettings(guidance=2.0, temperature=1.5)
COUNT, TOKENS = 8, TINY.num_image_tokens


def section(settings_class: type, settings: dict):
    """The settings that are the section's."""
    names = {f.name for f in fields(settings_class)}
    return settings_class(**{name: value for name, value in settings.items() if name in names})


class Setup:
    """A tiny policy, a reference that differs from it, a critic, and a batch drawn from the policy."""

    def __init__(self, dtype=torch.float64, policy=POLICY, objective="ppo", **settings):
        self.encoder, self.actor = tiny_bart(dtype=dtype)
        self.reference = tiny_bart(dtype=dtype, seed=20)[1].requires_grad_(False)
        self.critic = Critic(self.actor)
        randomise(self.critic.value_head, 7)
        self.config = Config(
            policy=policy,
            rollout=RolloutConfig(rollout_batch_size=COUNT),
            objective=objective,
            objective_settings=ppo.Settings(dual_clip=None) if objective == "ppo" else None,
            actor=section(ActorConfig, settings),
            update=section(UpdateConfig, {"minibatch_size": COUNT} | settings),
        )
        self.prompts = tiny_prompts(self.encoder, policy, 4, 10, 7, 6)
        keys = noise_keys(0, "rollout", 0, ["a"] * COUNT, range(COUNT))
        drawn = sample(self.actor, self.prompts, keys, policy)
        self.batch = Experience(
            captions=("",) * COUNT,
            tags=("",) * COUNT,
            caption_ids=("a",) * COUNT,
            caption_index=torch.arange(4).repeat_interleave(2),
            tokens=drawn.tokens,
            sampler_log_probs=drawn.log_probs,
            images=torch.zeros(COUNT, 3, 1, 1, dtype=torch.uint8),
            prompts=self.prompts,
        )
        generator = torch.Generator().manual_seed(1)
        shape = (COUNT, TOKENS)
        self.targets = {
            "advantages": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype),
            "returns": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype),
        }

    def networks(self, **changes) -> Networks:
        family = DalleFamily(FrozenParts(None, self.encoder, None), changes.pop("policy", self.config.policy))
        return replace(Networks(family, self.actor, self.reference, self.critic), **changes)

    def score(self, microbatch_size=3, batch=None, **changes) -> Experience:
        scored = score_passes(self.networks(**changes), batch or self.batch, microbatch_size, True)
        return replace(scored, scores=torch.zeros(COUNT))

    def learners(self, **sgd) -> tuple[Learner, Learner]:
        """Plain gradient steps of size 1 when `sgd` is given, else the project's AdamW."""
        networks = (copy.deepcopy(self.actor), copy.deepcopy(self.critic))
        if sgd:
            return tuple(Learner(n, torch.optim.SGD(n.parameters(), **sgd), 1e9) for n in networks)
        settings = ActorConfig(learning_rate=1e-3, adam_eps=self.config.actor.adam_eps)
        return tuple(make_learner(n, settings) for n in networks)

    def update(self, learners=None, scored=None, train_actor=True, kl_coef=0.1, config=None, targets=None):
        """One iteration's updates; returns actor, critic and metrics."""
        actor, critic = learners or self.learners()
        config = config or self.config
        experience = replace(scored or self.score(), **self.targets | (targets or {}))
        if (config.kl.placement, config.kl.estimator) != ("loss", "exact"):
            experience = replace(experience, reference_states=None)
        step = Step(actor, critic, kl_coef, train_actor, torch.Generator().manual_seed(4))
        networks, objective = self.networks(policy=config.policy), find_objective(config.objective)
        return actor.module, critic.module, run_update(networks, experience, objective, config, step)


def flat(module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def written_out_log_pi(decoder, setup: Setup, settings: PolicySettings) -> torch.Tensor:
    """Image by image, every branch's logits by themselves: the definition in docs/algorithm.md."""
    weight = decoder.lm_head.weight[: TINY.num_codes]
    rows = []
    for tokens, caption in zip(setup.batch.tokens, setup.batch.caption_index, strict=True):
        text = setup.prompts.text.select(caption[None])
        l_c = decoder(tokens[None], decoder.cross_states(text)) @ weight.T
        l_u = decoder(tokens[None], decoder.cross_states(setup.prompts.unconditional)) @ weight.T
        z = (l_u + settings.guidance * (l_c - l_u)) / settings.temperature
        rows.append(z - z.logsumexp(-1, keepdim=True))
    return torch.cat(rows)


def of_tokens(log_pi, tokens):
    every = [[log_pi[b, t, tokens[b, t]] for t in range(TOKENS)] for b in range(COUNT)]
    return torch.stack([torch.stack(row) for row in every])


@torch.no_grad()
def test_resampled_tokens():
    """Old log-probs are those of the tokens that were drawn, and drawing consumes no state."""
    setup = Setup()
    scored = setup.score()
    assert (scored.old_log_probs - setup.batch.sampler_log_probs).abs().max() < 1e-5
    assert scored.old_log_probs.std() > 0.2
    assert torch.equal(scored.old_log_probs, setup.score().old_log_probs)


CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@torch.no_grad()
def test_unguided_log_probs():
    setup = Setup()
    scored = setup.score()
    pi = written_out_log_pi(setup.actor, setup, setup.config.policy)
    torch.testing.assert_close(scored.old_log_probs, of_tokens(pi, setup.batch.tokens), **CLOSE)
    torch.testing.assert_close(scored.entropy, -(pi.exp() * pi).sum(-1), **CLOSE)
    unguided = written_out_log_pi(setup.actor, setup, replace(setup.config.policy, guidance=1.0))
    assert (of_tokens(unguided, setup.batch.tokens) - scored.old_log_probs).abs().mean() > 0.1


@torch.no_grad()
def test_temperature_forgotten_in_the_reference():
    setup = Setup(policy=replace(POLICY, temperature=1.5))
    scored, settings = setup.score(), setup.config.policy
    pi, ref, hot = (
        written_out_log_pi(network, setup, replace(settings, temperature=temperature))
        for network, temperature in ((setup.actor, 1.5), (setup.reference, 1.5), (setup.reference, 1.0))
    )
    torch.testing.assert_close(scored.old_log_probs, of_tokens(pi, setup.batch.tokens), **CLOSE)
    torch.testing.assert_close(scored.ref_log_probs, of_tokens(ref, setup.batch.tokens), **CLOSE)
    torch.testing.assert_close(scored.kl, (pi.exp() * (pi - ref)).sum(-1), **CLOSE)
    assert ((pi.exp() * (pi - hot)).sum(-1) - scored.kl).abs().mean() > 0.01


@torch.no_grad()
def test_kl_between_different_images():
    """Each row's KL is of the two policies on its own tokens and caption, and 0 where they are the same."""
    setup = Setup()
    ref = written_out_log_pi(setup.reference, setup, setup.config.policy)
    torch.testing.assert_close(setup.score().ref_log_probs, of_tokens(ref, setup.batch.tokens), **CLOSE)
    same = setup.score(reference=setup.actor)
    assert torch.equal(same.ref_log_probs, same.old_log_probs) and (same.kl == 0).all()
    assert (same.old_log_probs - same.ref_log_probs.roll(1, 0)).abs().mean() > 0.1


@torch.no_grad()
def test_values_are_the_critics_of_each_images_own_caption():
    setup = Setup()
    values = setup.score().values
    for i in range(COUNT):
        text = setup.prompts.text.select(setup.batch.caption_index[i : i + 1])
        alone = setup.critic(setup.batch.tokens[i : i + 1], setup.critic.cross_states(text))
        torch.testing.assert_close(values[i], alone[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_is_exactly_zero_while_actor_and_reference_are_equal(dtype):
    setup = Setup(dtype)
    scored = setup.score(reference=copy.deepcopy(setup.actor))
    assert not scored.kl.any()
    assert torch.equal(scored.old_log_probs, scored.ref_log_probs)
    assert (setup.score().kl > 0).all()


@pytest.mark.parametrize("guidance", [2.0, 16.0])
def test_ratio_is_one_on_the_first_minibatch(guidance):
    setup = Setup(
        torch.float32, policy=replace(POLICY, guidance=guidance), minibatch_size=4, microbatch_size=3
    )
    *_, metrics = setup.update()
    assert metrics["ratio_first_minibatch_max_deviation"] < 1e-3
    precise = Setup(minibatch_size=4, microbatch_size=3, epochs=2)
    *_, metrics = precise.update()
    assert metrics["ratio_first_minibatch_max_deviation"] < 1e-12
    assert metrics["ratio_max"] > 1 + 1e-6, "later minibatches do move"


@pytest.mark.parametrize("mistake", ["resampled tokens", "unguided log-probs", "temperature forgotten"])
def test_ratio_deviation_gives_classic_mistakes_away(mistake):
    setup = Setup()
    scored = setup.score()
    if mistake == "resampled tokens":
        scored = replace(scored, tokens=(scored.tokens + 1) % TINY.num_codes)
    wrong = replace(POLICY, guidance=1.0) if mistake == "unguided log-probs" else POLICY
    wrong = replace(wrong, temperature=1.0) if mistake == "temperature forgotten" else wrong
    config = replace(setup.config, policy=wrong)
    *_, metrics = setup.update(scored=scored, config=config)
    assert metrics["ratio_first_minibatch_max_deviation"] > 0.1


@pytest.mark.parametrize("objective", ["ppo", "reinforce"])
@pytest.mark.parametrize("penalty", ["k1 in the reward", "k2 in the loss", "exact in the loss"])
def test_step_is_the_gradient_of_the_written_out_loss(objective, penalty):
    setup = Setup(objective=objective, entropy_coef=0.05, microbatch_size=3)
    estimator, placement = penalty.split(" in the ")
    config = replace(setup.config, kl=KlConfig(estimator=estimator, placement=placement))
    weights = torch.rand(COUNT, TOKENS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    targets = setup.targets | {"token_weights": weights}
    actor, *_ = setup.update(setup.learners(lr=1.0), config=config, targets=targets, kl_coef=0.3)

    mine = copy.deepcopy(setup.actor)
    pi = written_out_log_pi(mine, setup, POLICY)
    with torch.no_grad():
        ref = written_out_log_pi(setup.reference, setup, POLICY)
    log_probs, ref_log_probs = (of_tokens(x, setup.batch.tokens) for x in (pi, ref))
    loss = -targets["advantages"] * log_probs * weights  # at ratio 1, PPO's gradient is that of log pi
    if estimator == "k2":
        loss = loss + 0.3 * (log_probs - ref_log_probs) ** 2 / 2
    if estimator == "exact":
        loss = loss + 0.3 * (pi.exp() * (pi - ref)).sum(-1)
    loss = loss + 0.05 * (pi.exp() * pi).sum(-1)
    gradient = torch.autograd.grad(loss.mean(), list(mine.parameters()))
    expected = flat(setup.actor) - torch.cat([g.flatten() for g in gradient])
    torch.testing.assert_close(flat(actor), expected, rtol=1e-10, atol=1e-12)
    assert (expected - flat(setup.actor)).norm() > 1e-2


def test_critics_step_is_the_gradient_of_half_the_mean_squared_error():
    setup = Setup(microbatch_size=3)
    _, critic, metrics = setup.update(setup.learners(lr=1.0))
    mine = copy.deepcopy(setup.critic)
    text = setup.prompts.text.select(setup.batch.caption_index)
    values = mine(setup.batch.tokens, mine.cross_states(text))
    loss = ((values - setup.targets["returns"]) ** 2 / 2).mean()
    gradient = torch.autograd.grad(loss, list(mine.parameters()))
    expected = flat(setup.critic) - torch.cat([g.flatten() for g in gradient])
    torch.testing.assert_close(flat(critic), expected, rtol=1e-10, atol=1e-12)
    assert metrics["value_loss"] == pytest.approx(float(loss.detach()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_any_microbatch_size_gives_the_same_update(dtype, tolerance):
    results = []
    for microbatch_size in (8, 1, 3):
        setup = Setup(
            dtype,
            epochs=2,
            minibatch_size=4,
            microbatch_size=microbatch_size,
            entropy_coef=0.01,
            adam_eps=1e-3,
        )
        config = replace(
            setup.config,
            kl=KlConfig(estimator="exact", placement="loss"),
            critic=CriticConfig(value_clip=0.5),
        )
        learners = tuple(replace(x, max_grad_norm=0.1) for x in setup.learners())
        actor, critic, metrics = setup.update(learners, scored=setup.score(8), config=config)
        results.append((flat(actor), flat(critic), metrics))
    assert (results[0][0] - flat(setup.actor)).abs().max() > 1e-4
    for actor, critic, metrics in results[1:]:
        assert (actor - results[0][0]).abs().max() <= tolerance
        assert (critic - results[0][1]).abs().max() <= tolerance
        assert metrics.pop("anchor_kl") is None
        for name, value in metrics.items():
            assert value == pytest.approx(results[0][2][name], rel=1e-4, abs=1e-5), name


def test_a_permuted_batch_gives_the_same_update():
    setup = Setup(microbatch_size=3)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    batch = replace(
        setup.batch,
        tokens=setup.batch.tokens[order],
        caption_index=setup.batch.caption_index[order],
        sampler_log_probs=setup.batch.sampler_log_probs[order],
    )
    scored, moved = setup.score(), setup.score(batch=batch)
    for name in ("old_log_probs", "ref_log_probs", "kl", "entropy", "values"):
        torch.testing.assert_close(getattr(moved, name), getattr(scored, name)[order], rtol=1e-10, atol=1e-12)
    targets = {name: column[order] for name, column in setup.targets.items()}
    actor, critic, _ = setup.update(setup.learners(lr=1.0), scored=scored)
    again = setup.update(setup.learners(lr=1.0), scored=moved, targets=targets)
    torch.testing.assert_close(flat(again[0]), flat(actor), rtol=0, atol=1e-12)
    torch.testing.assert_close(flat(again[1]), flat(critic), rtol=0, atol=1e-12)


def test_every_image_is_visited_once_an_epoch():
    # Gradient steps too small to matter add up to the full gradient, times the number of epochs.
    rate = 1e-9
    whole, small = Setup(), Setup(minibatch_size=2, microbatch_size=2, epochs=3)
    one = (flat(whole.update(whole.learners(lr=rate))[0]) - flat(whole.actor)) / rate
    many = (flat(small.update(small.learners(lr=rate))[0]) - flat(small.actor)) / rate
    assert (many - 12 * one).norm() < 1e-4 * one.norm()


def test_reference_and_text_encoder_are_bit_identical_after_an_update():
    setup = Setup(epochs=2, minibatch_size=4)
    before = [copy.deepcopy(x.state_dict()) for x in (setup.reference, setup.encoder)]
    states = setup.prompts.text.states.clone()
    setup.config = replace(setup.config, kl=KlConfig(estimator="exact", placement="loss"))
    setup.update((make_learner(setup.actor, setup.config.actor), setup.learners()[1]))
    for module, state in zip((setup.reference, setup.encoder), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())
    assert torch.equal(setup.prompts.text.states, states)


def test_frozen_actor_stays_while_the_critic_learns():
    setup = Setup()
    actor, critic, metrics = setup.update(train_actor=False)
    assert torch.equal(flat(actor), flat(setup.actor)) and not torch.equal(flat(critic), flat(setup.critic))
    assert metrics["ratio_max"] is None and metrics["policy_loss"] is None and metrics["value_loss"] > 0


def test_actor_and_critic_clip_their_gradients_apart():
    setup = Setup()
    huge = {"returns": setup.targets["returns"] * 1e6}
    actor, *_ = setup.update()
    with_huge_returns, _, metrics = setup.update(targets=huge)
    assert torch.equal(flat(actor), flat(with_huge_returns))
    assert metrics["critic_gradient_norm"] > 1e3 * metrics["gradient_norm"]


def test_gradient_norm_is_clipped():
    setup = Setup()
    free, _ = setup.learners(lr=1.0)
    clipped = replace(setup.learners(lr=1.0)[0], max_grad_norm=0.01)
    moves, metrics = [], []
    for actor in (free, clipped):
        module, _, numbers = setup.update((actor, setup.learners(lr=1.0)[1]))
        moves.append(flat(module) - flat(setup.actor))
        metrics.append(numbers["gradient_norm"])
    assert metrics[0] == pytest.approx(float(moves[0].norm())) and metrics[1] == metrics[0] > 0.01
    torch.testing.assert_close(moves[1], moves[0] * 0.01 / moves[0].norm(), rtol=1e-4, atol=1e-9)


def test_an_update_with_a_gradient_that_is_not_finite_is_skipped_and_counted():
    setup = Setup(minibatch_size=4)
    advantages = setup.targets["advantages"].clone()
    advantages[0, 0] = float("nan")
    learners = setup.learners()
    actor, critic, metrics = setup.update(learners, targets={"advantages": advantages})
    assert metrics["skipped_updates"] == 1
    assert torch.isfinite(flat(actor)).all() and torch.isfinite(flat(critic)).all()
    assert not torch.equal(flat(actor), flat(setup.actor)), "the other minibatch counts"
    assert all(p.grad is None for learner in learners for p in learner.module.parameters())


def test_an_infinite_loss_with_a_finite_gradient_is_skipped_too():
    """The square of a far return overflows, its slope does not."""
    setup = Setup(torch.float32, minibatch_size=4)
    returns = setup.targets["returns"].clone()
    returns[0, 0] = 3e19
    learners = setup.learners()
    *_, metrics = setup.update(learners, targets={"returns": returns})
    steps = [int(next(iter(x.optimizer.state.values()))["step"]) for x in learners]
    assert metrics["skipped_updates"] == 1 and steps == [2, 1]


def test_bad_step_stop_makes_no_step_after_the_bad_one():
    setup = Setup(minibatch_size=2, bad_step="stop")
    advantages = setup.targets["advantages"].clone()
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(4))
    advantages[order[2], 0] = float("nan")  # in the second minibatch
    learners = setup.learners()
    *_, metrics = setup.update(learners, targets={"advantages": advantages})
    assert metrics["skipped_updates"] == 1
    assert int(next(iter(learners[0].optimizer.state.values()))["step"]) == 1


@pytest.mark.parametrize("estimator", ["k2", "exact"])
def test_parts_of_the_loss_are_logged(estimator):
    setup = Setup(entropy_coef=0.05, microbatch_size=3)
    config = replace(setup.config, kl=KlConfig(estimator=estimator, placement="loss"))
    scored = setup.score()
    *_, metrics = setup.update(scored=scored, config=config, kl_coef=0.3)
    kl = scored.kl if estimator == "exact" else (scored.old_log_probs - scored.ref_log_probs) ** 2 / 2
    assert metrics["kl_loss"] == pytest.approx(0.3 * float(kl.mean()))
    assert metrics["entropy_loss"] == pytest.approx(-0.05 * float(scored.entropy.mean()))
    assert metrics["policy_loss"] == pytest.approx(-float(setup.targets["advantages"].mean()))


def test_target_kl_stops_an_iterations_updates():
    free = Setup(epochs=4, minibatch_size=4)
    stopped = Setup(epochs=4, minibatch_size=4, target_kl=1e-9)
    steps = []
    for setup in (free, stopped):
        learners = setup.learners()
        setup.update(learners)
        steps.append(int(next(iter(learners[0].optimizer.state.values()))["step"]))
    assert steps == [8, 1]  # the first minibatch has a KL of 0, the second sees the first's step


def test_past_target_kl_the_critic_goes_on_and_the_log_says_what_the_policy_did():
    learners = (setup := Setup(epochs=4, minibatch_size=4, target_kl=1e-9)).learners()
    *_, metrics = setup.update(learners)
    steps = [int(next(iter(x.optimizer.state.values()))["step"]) for x in learners]
    assert steps == [1, 8] and all(p.grad is None for p in learners[0].module.parameters())
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(4))
    expected = -setup.targets["advantages"][order[:4]].mean(), -setup.targets["advantages"][order[4:]].mean()
    assert metrics["policy_loss"] == pytest.approx(float(sum(expected)) / 2, abs=0.05), "of two minibatches"


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_ratio_that_is_no_number_is_not_passed_over_as_a_deviation_of_nothing(place):
    setup = Setup(minibatch_size=4, microbatch_size=2)
    scored, order = setup.score(), torch.randperm(COUNT, generator=torch.Generator().manual_seed(4))
    old = scored.old_log_probs.clone()
    old[order[0 if place == "first" else 3], 0] = float("nan")
    *_, metrics = setup.update(scored=replace(scored, old_log_probs=old))
    assert metrics["skipped_updates"] == 1
    assert math.isnan(metrics["ratio_first_minibatch_max_deviation"]) and math.isnan(metrics["ratio_max"])


def test_updates_raise_the_probability_of_what_earned_a_positive_advantage():
    setup = Setup(epochs=3, minibatch_size=4)
    signs = torch.where(torch.arange(COUNT) % 2 == 0, 1.0, -1.0)[:, None].expand(COUNT, TOKENS)
    actor, *_ = setup.update(targets={"advantages": signs})
    change = setup.score(actor=actor).old_log_probs - setup.score().old_log_probs
    assert (change * signs).sum() > 0.05


def test_weight_decay_is_on_matrices_only():
    setup = Setup(weight_decay=0.1)
    groups = make_learner(setup.actor, setup.config.actor).optimizer.param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0] and groups[0]["eps"] == 1e-5
    assert {p.ndim for p in groups[0]["params"]} == {2} and {p.ndim for p in groups[1]["params"]} == {1}
    assert sum(len(g["params"]) for g in groups) == len(list(setup.actor.parameters()))


def test_actor_and_critic_have_optimisers_of_their_own():
    setup = Setup(weight_decay=0.1, learning_rate=2e-3)
    settings = CriticConfig(learning_rate=5e-3, weight_decay=0.3, adam_eps=1e-7, max_grad_norm=0.2)
    for learner, decay, rate, eps, norm in (
        (make_learner(setup.critic, settings), 0.3, 5e-3, 1e-7, 0.2),
        (make_learner(setup.actor, setup.config.actor), 0.1, 2e-3, 1e-5, 1.0),
    ):
        group = learner.optimizer.param_groups[0]
        assert (group["weight_decay"], group["lr"], group["eps"]) == (decay, rate, eps)
        assert learner.max_grad_norm == norm


def test_learning_rates():
    rate = learning_rates(1.0, 2, "linear", 10)
    assert [rate(i) for i in (0, 1, 5, 9)] == pytest.approx([0.5, 0.9, 0.5, 0.1])
    assert learning_rates(2.0, 0, "linear", 4)(0) == 2.0
    rate = learning_rates(1.0, 4, "constant", 10)
    assert [rate(i) for i in (0, 1, 3, 9)] == pytest.approx([0.25, 0.5, 1.0, 1.0])
