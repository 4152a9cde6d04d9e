"""The whole chain on a policy small enough to enumerate: every sequence of 5 codes x 4 tokens, in float64.

The oracle is the expected reward itself, a sum over all sequences of products of softmax probabilities,
differentiated by autograd. It knows nothing of log-probs, advantages or losses. Estimators are weighted with
the probability of the sequences they were computed from, so "unbiased" means equal to rounding, not "close".
"""

import itertools
import statistics
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from dalle_ppo.models.dalle.sampling import log_pi_of_tokens
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.advantages import (
    PromptStatistics,
    gae,
    group_normalised,
    rloo,
    token_rewards,
    whiten,
)
from dalle_ppo.rl.kl import exact_kl, kl_k1, kl_k2, kl_k3
from dalle_ppo.rl.log_pi import gather_log_probs
from dalle_ppo.rl.losses import ppo_loss, score_function_loss

GUIDANCE, TEMPERATURE = 2.5, 0.8


class World:
    """All `codes`**`tokens` sequences, a guided Markov policy over them, and a reward for each."""

    def __init__(self, codes: int = 5, tokens: int = 4, seed: int = 0) -> None:
        self.codes, self.tokens = codes, tokens
        self.sequences = torch.tensor(list(itertools.product(range(codes), repeat=tokens)))
        generator = torch.Generator().manual_seed(seed)

        def table() -> Tensor:
            return 0.4 * torch.randn(tokens, codes + 1, codes, generator=generator, dtype=torch.float64)

        self.conditional, self.unconditional = table().requires_grad_(True), table().requires_grad_(True)
        self.ref_conditional, self.ref_unconditional = table(), table()
        self.reward = 3 * torch.randn(len(self.sequences), generator=generator, dtype=torch.float64) - 2
        self.any_critic = self.by_prefix(lambda t: 5 * torch.randn(codes**t, generator=generator).double())

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        return self.conditional, self.unconditional

    def by_prefix(self, numbers: Callable[[int], Tensor]) -> Tensor:
        """[N, T] with, at token t, one number per prefix of length t (sequences are in lexical order)."""
        rows = len(self.sequences)
        return torch.stack(
            [numbers(t).repeat_interleave(rows // self.codes**t) for t in range(self.tokens)], 1
        )

    def states(self) -> tuple[Tensor, Tensor]:
        start = torch.full_like(self.sequences[:, :1], self.codes)
        return torch.arange(self.tokens), torch.cat([start, self.sequences[:, :-1]], 1)

    def log_pi(self, conditional: Tensor, unconditional: Tensor, guidance: float = GUIDANCE) -> Tensor:
        """[N, T, V], as a model would give it for teacher-forced sequences."""
        position, previous = self.states()
        l_c, l_u = conditional[position, previous], unconditional[position, previous]
        return torch.log_softmax((l_u + guidance * (l_c - l_u)) / TEMPERATURE, -1)

    def of_drawn(self, log_pi: Tensor) -> Tensor:
        return log_pi.gather(-1, self.sequences[..., None])[..., 0]

    def log_probs(self, guidance: float = GUIDANCE) -> Tensor:
        return self.of_drawn(self.log_pi(*self.parameters, guidance=guidance))

    def ref_log_pi(self) -> Tensor:
        return self.log_pi(self.ref_conditional, self.ref_unconditional)

    def ref_log_probs(self) -> Tensor:
        return self.of_drawn(self.ref_log_pi())

    # ---- the oracle: probabilities as products of exponentials, no logs and nothing of dalle_ppo

    def step_probabilities(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """[T, V+1, V] probability of each code after each state."""
        mixed = GUIDANCE * conditional + (1 - GUIDANCE) * unconditional
        weights = torch.exp(mixed / TEMPERATURE)
        return weights / weights.sum(-1, keepdim=True)

    def probabilities(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """[N] probability of every sequence."""
        position, previous = self.states()
        return self.step_probabilities(conditional, unconditional)[position, previous, self.sequences].prod(1)

    def now(self) -> Tensor:
        return self.probabilities(*self.parameters).detach()

    def gradient(self, objective: Tensor) -> Tensor:
        """[P] gradient with respect to both tables."""
        return torch.cat(
            [part.flatten() for part in torch.autograd.grad(objective, self.parameters, retain_graph=True)]
        )

    def reward_gradient(self) -> Tensor:
        return self.gradient((self.probabilities(*self.parameters) * self.reward).sum())

    def kl_gradient(self) -> Tensor:
        """Of KL(pi, ref) between the distributions over whole sequences."""
        p, q = (
            self.probabilities(*self.parameters),
            self.probabilities(self.ref_conditional, self.ref_unconditional),
        )
        return self.gradient((p * (p / q).log()).sum())

    def immediate_kl_gradient(self, backwards: bool = False) -> Tensor:
        """Sum over tokens of the gradient of each token's KL, prefixes fixed; `backwards`: KL(ref, pi)."""
        p = self.step_probabilities(*self.parameters)
        q = self.step_probabilities(self.ref_conditional, self.ref_unconditional)
        per_state = (q * (q / p).log() if backwards else p * (p / q).log()).sum(-1)
        position, previous = self.states()
        return self.gradient((self.now() * per_state[position, previous].sum(1)).sum())

    # ---- expectations of estimators

    def expected(self, loss: Tensor) -> Tensor:
        """[P] minus the gradient of a per-token loss [N, T], each sequence weighted by its probability."""
        return -self.gradient((self.now()[:, None] * loss).sum())

    def exact_values(self, rewards: Tensor) -> Tensor:
        """[N, T] expected sum of the rewards from token t on, given the tokens before t."""
        p, to_come = self.now(), rewards.flip(1).cumsum(1).flip(1)

        def mean_by_prefix(t: int) -> Tensor:
            groups = self.codes**t
            return (p * to_come[:, t]).view(groups, -1).sum(1) / p.view(groups, -1).sum(1)

        return self.by_prefix(mean_by_prefix)

    def rewards(self, kl_coef: float = 0.0) -> Tensor:
        return token_rewards(self.reward, kl_k1(self.log_probs(), self.ref_log_probs()), kl_coef)

    def at_every_token(self, per_image: Tensor) -> Tensor:
        return per_image[:, None].expand(-1, self.tokens)


@pytest.fixture
def world() -> World:
    return World()


def policy_losses(log_probs: Tensor, advantages: Tensor) -> list[Tensor]:
    """Both objectives on the first minibatch, where they must have the same gradient."""
    old = log_probs.detach()
    return [
        score_function_loss(log_probs, advantages, old_log_probs=old).loss,
        ppo_loss(log_probs, old, advantages, clip_range=0.2, clip_range_high=0.28, dual_clip=3.0).loss,
    ]


def assert_same(a: Tensor, b: Tensor, tolerance: float = 1e-11) -> None:
    assert (a - b).abs().max() < tolerance * b.abs().max()


def relative_difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


# ---------------------------------------------------------------- the policy itself


def test_log_probs_of_all_sequences_against_products_of_probabilities(world):
    torch.testing.assert_close(world.log_probs().sum(1).exp(), world.probabilities(*world.parameters))
    assert world.now().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_the_oracle_itself_by_central_differences(world):
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(part.shape, generator=generator).double() for part in world.parameters]
    step, ends = 1e-5, []
    for sign in (1, -1):
        moved = [
            part.detach() + sign * step * d for part, d in zip(world.parameters, directions, strict=True)
        ]
        ends.append((world.probabilities(*moved) * world.reward).sum())
    along = world.reward_gradient() @ torch.cat([d.flatten() for d in directions])
    assert along.item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), rel=1e-7)


def test_sequence_kl_is_the_expected_sum_of_the_token_kls(world):
    """Nats per image: k1, k3 and the exact KL summed over tokens average to the KL between sequences."""
    p, q = world.now(), world.probabilities(world.ref_conditional, world.ref_unconditional)
    oracle = (p * (p / q).log()).sum().item()
    log_probs, ref = world.log_probs().detach(), world.ref_log_probs()
    log_pi = world.log_pi(*world.parameters).detach()
    for per_token in (kl_k1(log_probs, ref), kl_k3(log_probs, ref), exact_kl(log_pi, world.ref_log_pi())):
        assert (p * per_token.sum(1)).sum().item() == pytest.approx(oracle, rel=1e-11)


# ---------------------------------------------------------------- unbiased estimators


def test_reinforce(world):
    for loss in policy_losses(world.log_probs(), world.at_every_token(world.reward)):
        assert_same(world.expected(loss), world.reward_gradient())


def test_gae_with_lambda_one_and_any_critic(world):
    advantages = gae(world.rewards(), world.any_critic, 1.0)
    for loss in policy_losses(world.log_probs(), advantages):
        assert_same(world.expected(loss), world.reward_gradient())


@pytest.mark.parametrize("gae_lambda", [0.0, 0.3, 0.95, 1.0])
def test_gae_with_any_lambda_and_the_exact_critic(world, gae_lambda):
    rewards = world.rewards()
    advantages = gae(rewards, world.exact_values(rewards), gae_lambda)
    for loss in policy_losses(world.log_probs(), advantages):
        assert_same(world.expected(loss), world.reward_gradient())


def test_gae_below_lambda_one_is_as_wrong_as_its_critic(world):
    advantages = gae(world.rewards(), world.any_critic, 0.5)
    loss = policy_losses(world.log_probs(), advantages)[0]
    assert relative_difference(world.expected(loss), world.reward_gradient()) > 0.1


def test_critic_that_has_seen_the_token_it_judges(world):
    """values[:, t] may read the tokens before t only; one token further and even lambda 1 is biased."""
    peeking = torch.cat([world.any_critic[:, 1:], world.any_critic[:, -1:]], 1)
    loss = policy_losses(world.log_probs(), gae(world.rewards(), peeking, 1.0))[0]
    assert relative_difference(world.expected(loss), world.reward_gradient()) > 0.1


@pytest.mark.parametrize("codes, tokens, group_size", [(3, 3, 2), (2, 3, 3)])
def test_rloo_over_every_possible_group(codes, tokens, group_size):
    world = World(codes, tokens)
    rows, group_index, weights = every_group(world, group_size)
    advantages = rloo(world.reward[rows], group_index)[:, None].expand(-1, tokens)
    for loss in policy_losses(world.log_probs()[rows], advantages):
        assert_same(-world.gradient((weights[:, None] * loss).sum()), world.reward_gradient())


def every_group(world: World, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """All ordered groups: the members' rows, their group's number, and probability of the group / size."""
    members = torch.tensor(list(itertools.product(range(len(world.sequences)), repeat=size)))
    weights = world.now()[members].prod(1) / size
    group_index = torch.arange(len(members)).repeat_interleave(size)
    return members.flatten(), group_index, weights.repeat_interleave(size)


def normalised_in_groups_of_three(world: World) -> Tensor:
    """The gradient that group-normalised scores expect, by a loop over all groups of three images."""
    p, reward = world.now().tolist(), world.reward.tolist()
    pushed = torch.zeros(len(p), dtype=torch.float64)
    for group in itertools.product(range(len(p)), repeat=3):
        scores = [reward[i] for i in group]
        for i in group:
            normalised = (reward[i] - statistics.mean(scores)) / (statistics.stdev(scores) + 1e-4)
            pushed[i] += p[group[0]] * p[group[1]] * p[group[2]] * normalised / 3
    return world.gradient((pushed * world.probabilities(*world.parameters).log()).sum())


def test_group_normalised_against_its_own_enumerated_expectation():
    """Biased by design, so not against the reward gradient but a loop over all groups of three."""
    world = World(2, 3)
    rows, group_index, weights = every_group(world, 3)
    advantages = group_normalised(world.reward[rows], group_index)[:, None].expand(-1, 3)
    oracle = normalised_in_groups_of_three(world)
    for loss in policy_losses(world.log_probs()[rows], advantages):
        assert_same(-world.gradient((weights[:, None] * loss).sum()), oracle)
    assert relative_difference(oracle, world.reward_gradient()) > 0.1


def test_per_prompt_statistics_known_beforehand_only_rescale_the_gradient(world):
    earlier = torch.tensor([-3.0, 0.5, 1.0, -2.0], dtype=torch.float64)
    known = PromptStatistics(buffer_size=8, min_count=2).update(earlier, ["boat"] * 4)
    advantages = known.advantages(world.reward, ["boat"] * len(world.reward))
    for loss in policy_losses(world.log_probs(), world.at_every_token(advantages)):
        assert_same(world.expected(loss) * (np.std(earlier.numpy()) + 1e-6), world.reward_gradient())


def test_per_prompt_statistics_against_their_own_enumerated_expectation(world):
    """In DDPO's order the image's own score is in the buffer it is compared with: a small bias."""
    earlier = torch.tensor([-3.0, 0.5, 1.0, -2.0], dtype=torch.float64)
    known = PromptStatistics(buffer_size=4, min_count=2).update(earlier, ["boat"] * 4)
    ours, by_hand = [], []
    for score in world.reward:
        ours.append(known.update(score[None], ["boat"]).advantages(score[None], ["boat"]))
        buffer = [*earlier.tolist()[1:], score.item()]
        by_hand.append((score.item() - np.mean(buffer)) / (np.std(buffer) + 1e-6))
    pushed = world.now() * torch.tensor(by_hand, dtype=torch.float64)
    oracle = world.gradient((pushed * world.probabilities(*world.parameters).log()).sum())
    for loss in policy_losses(world.log_probs(), world.at_every_token(torch.cat(ours))):
        assert_same(world.expected(loss), oracle)


def test_log_probs_without_guidance_have_another_policys_gradient(world):
    """Draw with guidance, score without: another policy's gradient, and only the ratio tells."""
    unguided = world.log_probs(guidance=1.0)
    loss = score_function_loss(
        unguided, world.at_every_token(world.reward), old_log_probs=world.log_probs().detach()
    )
    assert relative_difference(world.expected(loss.loss), world.reward_gradient()) > 0.3
    assert (loss.ratio - 1).abs().max() > 0.3


def test_per_sequence_whitening_erases_the_score(world):
    """Whitened over the batch and per sequence: only one still points along the gradient."""
    advantages, truth = world.at_every_token(world.reward), world.reward_gradient()
    over_batch = world.expected(policy_losses(world.log_probs(), whiten(advantages))[0])
    centred = advantages - advantages.mean(1, keepdim=True)
    per_sequence = world.expected(policy_losses(world.log_probs(), centred)[0])
    assert torch.nn.functional.cosine_similarity(over_batch, truth, dim=0) > 0.99
    assert per_sequence.norm() < 1e-9 * truth.norm()


# ---------------------------------------------------------------- the policy that is really trained


class TableDecoder:
    """The tables behind the decoder's interface: hidden states are logits, the head does nothing."""

    def __init__(self, world: World) -> None:
        self.tables = {"caption": world.conditional, "no caption": world.unconditional}
        self.codes = world.codes

    def cross_states(self, text: str) -> str:
        return text

    def head(self, hidden: Tensor) -> Tensor:
        return hidden

    def __call__(self, tokens: Tensor, cross: str, start_token: int) -> Tensor:
        start = torch.full_like(tokens[:, :1], start_token)
        previous = torch.cat([start, tokens[:, :-1]], 1)
        return self.tables[cross][torch.arange(tokens.shape[1]), previous]


@pytest.mark.parametrize("detach_unconditional", [False, True])
def test_gradient_through_the_projects_own_log_probs(world, detach_unconditional):
    """`log_pi_of_tokens`, with guidance and temperature: REINFORCE gives the enumerated gradient.

    With the unconditional branch detached it is the part of it that goes through the conditional one.
    """
    settings = PolicySettings(
        guidance=GUIDANCE,
        temperature=TEMPERATURE,
        start_token=world.codes,
        detach_unconditional=detach_unconditional,
    )
    prompts = SimpleNamespace(text="caption", unconditional="no caption")
    log_pi = log_pi_of_tokens(TableDecoder(world), world.sequences, prompts, settings)
    torch.testing.assert_close(log_pi, world.log_pi(*world.parameters), rtol=1e-12, atol=1e-12)
    log_probs = gather_log_probs(log_pi, world.sequences)
    loss = policy_losses(log_probs, world.at_every_token(world.reward))[1]
    objective = -(world.now()[:, None] * loss).sum()
    truth = world.reward_gradient().view(2, *world.conditional.shape)
    got = torch.autograd.grad(objective, world.parameters, allow_unused=True)
    assert_same(got[0], truth[0])
    if detach_unconditional:
        assert got[1] is None
    else:
        assert_same(got[1], truth[1])
    exact = exact_kl(log_pi, world.ref_log_pi()).sum(1)
    p, q = world.now(), world.probabilities(world.ref_conditional, world.ref_unconditional)
    assert (p * exact).sum().item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-11)


# ---------------------------------------------------------------- the same by sampling


def drawn_estimates(
    world: World, name: str, batch: int, generator: torch.Generator, directions: Tensor
) -> Tensor:
    """[batch / 4, K] estimates of the gradient along K directions, one per group of four images."""
    rows = torch.multinomial(world.now(), batch, replacement=True, generator=generator)
    log_probs = world.log_probs().detach()[rows].requires_grad_(True)
    group_index, rewards = torch.arange(batch // 4).repeat_interleave(4), world.rewards()
    advantages = {
        "reinforce": lambda: world.at_every_token(world.reward)[rows],
        "rloo": lambda: world.at_every_token(rloo(world.reward[rows], group_index)),
        "gae, lambda 1, any critic": lambda: gae(rewards[rows], world.any_critic[rows], 1.0),
        "gae, lambda 0.7, exact critic": lambda: gae(rewards[rows], world.exact_values(rewards)[rows], 0.7),
        "gae, lambda 0.7, any critic": lambda: gae(rewards[rows], world.any_critic[rows], 0.7),
        "own score in the baseline": lambda: world.at_every_token(
            world.reward[rows] - world.reward[rows].view(-1, 4).mean(1).repeat_interleave(4)
        ),
    }[name]()
    per_token = -torch.autograd.grad(policy_losses(log_probs, advantages)[1].sum(), log_probs)[0]
    return (per_token[..., None] * directions[rows]).sum(1).view(-1, 4, directions.shape[-1]).mean(1)


def worst_z(world: World, name: str) -> float:
    """Largest |mean error| / standard error along the truth and three random directions."""
    truth = world.reward_gradient()
    random = torch.randn(3, len(truth), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    directions = torch.cat([truth[None], random])
    log_probs, sensitivities = world.log_probs(), []
    # derivative of every log-prob along each direction: forward mode, from differentiating backward twice
    dummy = torch.zeros_like(log_probs, requires_grad=True)
    flat = torch.autograd.grad(log_probs, world.parameters, dummy, create_graph=True)
    for direction in directions:
        parts = direction.view(2, *world.conditional.shape)
        along = sum((g * d).sum() for g, d in zip(flat, parts, strict=True))
        sensitivities.append(torch.autograd.grad(along, dummy, retain_graph=True)[0])
    sensitivities, generator = torch.stack(sensitivities, -1), torch.Generator().manual_seed(3)
    estimates = torch.cat([drawn_estimates(world, name, 1000, generator, sensitivities) for _ in range(64)])
    error = estimates.mean(0) - directions @ truth
    return (error / (estimates.std(0) / len(estimates) ** 0.5)).abs().max().item()


@pytest.mark.parametrize(
    "name", ["reinforce", "rloo", "gae, lambda 1, any critic", "gae, lambda 0.7, exact critic"]
)
def test_sampled_estimates_are_within_their_standard_error(world, name):
    assert worst_z(world, name) < 3.5


@pytest.mark.parametrize("name", ["gae, lambda 0.7, any critic", "own score in the baseline"])
def test_sampled_estimates_have_the_power_to_see_a_bias(world, name):
    assert worst_z(world, name) > 7


# ---------------------------------------------------------------- where the KL may go


def test_k1_in_the_reward_has_the_gradient_of_the_kl(world):
    rewards = world.rewards(kl_coef=0.3)
    truth = world.reward_gradient() - 0.3 * world.kl_gradient()
    for critic, gae_lambda in ((world.any_critic, 1.0), (world.exact_values(rewards), 0.6)):
        for loss in policy_losses(world.log_probs(), gae(rewards, critic, gae_lambda)):
            assert_same(world.expected(loss), truth)


@pytest.mark.parametrize("estimator", ["k2", "exact"])
def test_k2_and_exact_in_the_loss_have_each_tokens_own_gradient(world, estimator):
    """Allowed, with what is documented: no credit for KL that a token causes later."""
    if estimator == "k2":
        loss = kl_k2(world.log_probs(), world.ref_log_probs())
    else:
        loss = exact_kl(world.log_pi(*world.parameters), world.ref_log_pi())
    assert_same(-world.expected(loss), world.immediate_kl_gradient())
    assert relative_difference(world.immediate_kl_gradient(), world.kl_gradient()) > 0.05


def test_k1_in_the_loss_has_no_expected_gradient(world):
    gradient = world.expected(kl_k1(world.log_probs(), world.ref_log_probs()))
    assert gradient.norm() < 1e-12 * world.kl_gradient().norm()


def test_k3_in_the_loss_has_the_gradient_of_the_other_kl(world):
    gradient = -world.expected(kl_k3(world.log_probs(), world.ref_log_probs()))
    assert_same(gradient, world.immediate_kl_gradient(backwards=True))
    assert relative_difference(gradient, world.immediate_kl_gradient()) > 0.1


def kl_in_the_reward(world: World, per_token: Tensor) -> Tensor:
    """[P] expected ascent direction of the penalty alone, sign turned: should be the gradient of the KL."""
    rewards = token_rewards(torch.zeros_like(world.reward), per_token, 1.0)
    loss = policy_losses(world.log_probs(), gae(rewards, torch.zeros_like(rewards), 1.0))[0]
    return -world.expected(loss)


def test_exact_kl_in_the_reward_loses_each_tokens_own_gradient(world):
    gradient = kl_in_the_reward(world, exact_kl(world.log_pi(*world.parameters), world.ref_log_pi()))
    assert_same(gradient, world.kl_gradient() - world.immediate_kl_gradient(), tolerance=1e-10)
    assert relative_difference(gradient, world.kl_gradient()) > 0.5


def test_k3_in_the_reward_loses_the_gradient_of_the_other_kl(world):
    gradient = kl_in_the_reward(world, kl_k3(world.log_probs(), world.ref_log_probs()))
    assert_same(gradient, world.kl_gradient() - world.immediate_kl_gradient(backwards=True), tolerance=1e-10)
    assert relative_difference(gradient, world.kl_gradient()) > 0.5


def test_k2_in_the_reward_is_biased(world):
    gradient = kl_in_the_reward(world, kl_k2(world.log_probs(), world.ref_log_probs()))
    assert relative_difference(gradient, world.kl_gradient()) > 0.1
