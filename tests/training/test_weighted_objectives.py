"""Objectives that weigh whole images, on a policy small enough to enumerate: 5 codes x 4 tokens, in float64.

The policy has free logits after every prefix, so it can be any distribution over sequences, and known optima
can be reached. Credit, selection and loss are the project's own, as the trainer calls them. The oracle is the
closed form of the gradient of a weighted likelihood, by counting, and of its coefficients.
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from tiny_trainer import TINY_CONFIG, NoWriter, changed, tiny_trainer
from torch import Tensor

from dalle_ppo.config.objective import find_objective as find_settings
from dalle_ppo.config.settings import Config
from dalle_ppo.models.family import token_scores
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.credit import CreditState
from dalle_ppo.training.objective import find_objective

TAU, BETA, GAMMA = 0.7, 0.3, 0.4


def settings(name: str, **more: object) -> Config:
    """The objective's own defaults; `more` are settings of its own."""
    own = {f"{name}.{key}": value for key, value in more.items()}
    return changed(TINY_CONFIG, {"objective": name, **find_settings(name).defaults, **own})


class Tree:
    """All sequences; a policy and a reference with logits of their own after every prefix; scores."""

    def __init__(self, codes: int = 5, tokens: int = 4, seed: int = 0) -> None:
        self.codes, self.tokens = codes, tokens
        self.sequences = torch.tensor(list(itertools.product(range(codes), repeat=tokens)))
        generator = torch.Generator().manual_seed(seed)
        first = [sum(codes**s for s in range(t)) for t in range(tokens + 1)]
        # Sequences are in lexical order: those that share a prefix are neighbours.
        place = torch.arange(len(self.sequences))
        self.prefix = torch.stack([first[t] + place // codes ** (tokens - t) for t in range(tokens)], 1)
        shape = (first[tokens], codes)
        self.logits = 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
        self.ref_logits = 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
        self.logits.requires_grad_(True)
        self.score = torch.randn(len(self.sequences), generator=generator, dtype=torch.float64)

    def probabilities(self, logits: Tensor) -> Tensor:
        """[N], as products of probabilities."""
        weights = logits.detach().exp()
        step = weights / weights.sum(-1, keepdim=True)
        return step[self.prefix, self.sequences].prod(1)

    def gradient_of_likelihood(self, coefficients: Tensor) -> Tensor:
        """Gradient of `sum_i c_i log pi(i)` by the logits: what goes through a code, minus its due share."""
        passing = torch.zeros_like(self.logits)
        for t in range(self.tokens):
            passing.index_put_((self.prefix[:, t], self.sequences[:, t]), coefficients, accumulate=True)
        share = self.logits.detach().softmax(-1)
        return passing - share * passing.sum(-1, keepdim=True)

    def gradient_of_kl(self, drawn: Tensor) -> Tensor:
        """Gradient of the sum over tokens of each token's KL(pi, ref), after prefixes of `drawn` [N]."""
        visits = torch.zeros(len(self.logits), dtype=torch.float64)
        for t in range(self.tokens):
            visits.index_add_(0, self.prefix[:, t], drawn)
        pi, ref = self.logits.detach().softmax(-1), self.ref_logits.softmax(-1)
        log_ratio = (pi / ref).log()
        kl = (pi * log_ratio).sum(-1, keepdim=True)
        return visits[:, None] * pi * (log_ratio - kl)

    def experience(self, rows: Tensor, captions: Tensor, scores: Tensor) -> Experience:
        """The sequences `rows` as images of `captions`, scored as the trainer does."""
        ref = self.scores_of(self.ref_logits, rows)
        blank = ("",) * len(rows)
        return Experience(
            blank, blank, blank, captions, self.sequences[rows], ref, torch.zeros(len(rows)),
            scores=scores, old_log_probs=self.scores_of(self.logits.detach(), rows), ref_log_probs=ref,
        )  # fmt: skip

    def scores_of(self, logits: Tensor, rows: Tensor) -> Tensor:
        return logits.log_softmax(-1)[self.prefix[rows], self.sequences[rows]]

    def loss(self, config: Config, experience: Experience, weights: Tensor) -> Tensor:
        """The expected loss of an image: per token, summed over tokens; `weights` [M] is each caption's."""
        objective = find_objective(config.objective)
        filled, _ = objective.credit(experience, config, CreditState())
        chosen = objective.select(filled, config)
        rows = (chosen.tokens * self.codes ** torch.arange(self.tokens).flip(0)).sum(1)
        log_pi = self.logits.log_softmax(-1)[self.prefix[rows]]
        ref_log_pi = self.ref_logits.log_softmax(-1)[self.prefix[rows]]
        scores = token_scores(log_pi, chosen.tokens, ref_log_pi)
        loss = objective.loss(scores, chosen, config.objective_settings).loss
        return (weights[chosen.caption_index, None] * loss).sum()

    def minimise(self, loss: Callable[[], Tensor]) -> Tensor:
        """The probabilities [N] of the policy that minimises the loss."""
        optimizer = torch.optim.LBFGS(
            [self.logits], max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)
        return self.probabilities(self.logits)


def gradient(tree: Tree, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss, tree.logits)[0]


def assert_same(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    assert (a - b).abs().max() < tolerance * b.abs().max()


def assert_distribution(got: Tensor, weights: Tensor) -> None:
    torch.testing.assert_close(got, weights / weights.sum(), rtol=1e-4, atol=1e-7)


@pytest.fixture
def tree() -> Tree:
    return Tree()


@pytest.fixture
def small() -> Tree:
    """For descents."""
    return Tree(codes=3, tokens=2, seed=1)


# ---------------------------------------------------------------- likelihoods of single images


def one_round(tree: Tree) -> Experience:
    """Every sequence once, each as the image of a caption of its own."""
    every = torch.arange(len(tree.sequences))
    return tree.experience(every, every, tree.score)


def softmax_of(tree: Tree) -> Tensor:
    """RWR's weights by their formula: mean 1, and the temperature in standard deviations of the scores."""
    weights = (tree.score / tree.score.std(correction=0) / TAU).exp()
    return weights / weights.mean()


def test_rwr_has_the_gradient_of_the_weighted_likelihood(tree):
    p = tree.probabilities(tree.logits)
    loss = tree.loss(settings("rwr", temperature=TAU), one_round(tree), p)
    assert_same(gradient(tree, loss), -tree.gradient_of_likelihood(p * softmax_of(tree)))


def test_rwr_ends_at_the_old_policy_times_the_weights(small):
    p, config, drawn = small.probabilities(small.logits), settings("rwr", temperature=TAU), one_round(small)
    reached = small.minimise(lambda: small.loss(config, drawn, p))
    assert_distribution(reached, p * softmax_of(small))


def test_raw_scores_where_they_are_not_normalised(tree):
    config = changed(settings("rwr"), {"credit.normalise_scores": False, "rwr.temperature": TAU})
    p, weights = tree.probabilities(tree.logits), (tree.score / TAU).exp()
    got = gradient(tree, tree.loss(config, one_round(tree), p))
    assert_same(got, -tree.gradient_of_likelihood(p * weights / weights.mean()))


def test_sparse_rwr_learns_from_the_best_decile_alone(tree):
    p = tree.probabilities(tree.logits)
    got = gradient(tree, tree.loss(settings("rwr", sparse_percentile=90.0), one_round(tree), p))
    best = tree.score.argsort(descending=True)[:63]
    kept = torch.zeros_like(p).index_fill(0, best, 1.0)
    assert_same(got, -tree.gradient_of_likelihood(p * kept))
    chosen = find_objective("rwr").select
    config = settings("rwr", sparse_percentile=90.0)
    filled, _ = find_objective("rwr").credit(one_round(tree), config, CreditState())
    assert sorted(chosen(filled, config).caption_index.tolist()) == sorted(best.tolist())


def test_rwr_per_prompt_shares_the_weight_among_captions(tree):
    rows, captions = torch.tensor([3, 9, 4, 600, 77, 8]), torch.tensor([0, 0, 0, 1, 1, 1])
    scores = torch.tensor([1.0, 2.0, 0.5, 30.0, 32.0, 31.0], dtype=torch.float64)
    together = {"rollout.samples_per_caption": 4, "rwr.temperature": TAU, "rwr.per_prompt": True}
    config = changed(TINY_CONFIG, {"objective": "rwr", **find_settings("rwr").defaults, **together})
    filled, _ = find_objective("rwr").credit(tree.experience(rows, captions, scores), config, CreditState())
    weights, scale = filled.advantages[:, 0], scores.std(correction=0)
    for members in (slice(0, 3), slice(3, 6)):
        torch.testing.assert_close(weights[members], 3 * (scores[members] / scale / TAU).softmax(0))
    whole, _ = find_objective("rwr").credit(
        tree.experience(rows, captions, scores), settings("rwr", temperature=TAU), CreditState()
    )
    assert whole.advantages[:3].sum() < 0.1 * whole.advantages.sum()


def normalised_from_the_lowest(tree: Tree) -> Tensor:
    return (tree.score - tree.score.min()) / tree.score.std(correction=0)


def test_dpok_sft_form_data(tree):
    ref = tree.probabilities(tree.ref_logits)
    loss = tree.loss(settings("dpok_sft", form="data", gamma=GAMMA), one_round(tree), ref)
    weights = normalised_from_the_lowest(tree) + GAMMA
    assert_same(gradient(tree, loss), -tree.gradient_of_likelihood(ref * weights))


def test_dpok_sft_form_data_ends_at_the_reference_times_the_weights(small):
    ref, config = small.probabilities(small.ref_logits), settings("dpok_sft", form="data", gamma=GAMMA)
    drawn = one_round(small)
    reached = small.minimise(lambda: small.loss(config, drawn, ref))
    assert_distribution(reached, ref * (normalised_from_the_lowest(small) + GAMMA))


def test_dpok_sft_form_output(tree):
    ref = tree.probabilities(tree.ref_logits)
    loss = tree.loss(settings("dpok_sft", form="output", gamma=GAMMA), one_round(tree), ref)
    likelihood = tree.gradient_of_likelihood(ref * normalised_from_the_lowest(tree))
    assert_same(gradient(tree, loss), GAMMA * tree.gradient_of_kl(ref) - likelihood)


@pytest.mark.parametrize("form", ["data", "output"])
def test_a_large_gamma_holds_dpok_sft_at_the_reference(small, form):
    ref, drawn = small.probabilities(small.ref_logits), one_round(small)
    config = settings("dpok_sft", form=form, gamma=1e4)
    reached = small.minimise(lambda: small.loss(config, drawn, ref) / 1e4)
    torch.testing.assert_close(reached, ref, rtol=3e-3, atol=0)


# ---------------------------------------------------------------- comparisons within captions


def every_pair(tree: Tree) -> tuple[Tensor, Tensor]:
    """All captions with two different images, [2 M] rows and [M] probabilities of the captions."""
    p = tree.probabilities(tree.logits)
    pairs = torch.combinations(torch.arange(len(tree.sequences)))
    return pairs.flatten(), 2 * p[pairs].prod(1)


def pairs_of(tree: Tree) -> tuple[Experience, Tensor]:
    rows, weights = every_pair(tree)
    captions = torch.arange(len(weights)).repeat_interleave(2)
    return tree.experience(rows, captions, tree.score[rows]), weights


def best_of_two(tree: Tree) -> Tensor:
    """[N] how often a sequence is the best of two different ones: order statistics of the scores."""
    p, order = tree.probabilities(tree.logits), tree.score.argsort()
    up_to = p[order].cumsum(0)
    squares = up_to.square() - (up_to - p[order]).square() - p[order].square()
    return torch.zeros_like(p).index_copy(0, order, squares)


def test_best_of_n_has_the_gradient_of_the_best_ones_likelihood(tree):
    drawn, weights = pairs_of(tree)
    got = gradient(tree, tree.loss(settings("best_of_n"), drawn, weights))
    assert_same(got, -tree.gradient_of_likelihood(best_of_two(tree)))


def test_best_of_n_ends_where_the_best_of_n_is_drawn(small):
    (drawn, weights), truth = pairs_of(small), best_of_two(small)
    reached = small.minimise(lambda: small.loss(settings("best_of_n"), drawn, weights))
    assert_distribution(reached, truth)


def test_online_dpo_has_the_gradient_of_the_pairs(tree):
    drawn, weights = pairs_of(tree)
    # Two images and T tokens carry the loss of their pair.
    loss = tree.loss(settings("online_dpo", beta=BETA), drawn, weights) / (2 * tree.tokens)
    p = tree.probabilities(tree.logits)
    implied = BETA * (p / tree.probabilities(tree.ref_logits)).log()
    side = (tree.score[:, None] - tree.score[None, :]).sign()
    wrong = torch.sigmoid(-side * (implied[:, None] - implied[None, :]))
    pushed = p[:, None] * p[None, :] * BETA * side * wrong
    assert_same(gradient(tree, loss), -tree.gradient_of_likelihood(pushed.sum(1) - pushed.sum(0)))


def preferred_by_chance(tree: Tree, reward: Tensor) -> tuple[Experience, Tensor]:
    """Every pair in both orders of preference, with the probabilities of Bradley and Terry."""
    rows, weights = every_pair(tree)
    first, second = rows.view(-1, 2).T
    chance = torch.sigmoid(reward[first] - reward[second])
    both = torch.cat([weights * chance, weights * (1 - chance)])
    captions = torch.arange(len(both)).repeat_interleave(2)
    wins = (
        torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64).view(2, 2).repeat_interleave(len(weights), 0)
    )
    return tree.experience(rows.repeat(2), captions, wins.flatten()), both


def test_online_dpo_stands_still_at_the_reference_times_exp_reward_over_beta(small):
    """Where preferences follow Bradley and Terry's model, whatever policy drew the pairs."""
    reward, config = 0.8 * small.score, settings("online_dpo", beta=BETA)
    drawn, weights = preferred_by_chance(small, reward)
    at_first = gradient(small, small.loss(config, drawn, weights))
    optimum = small.probabilities(small.ref_logits) * (reward / BETA).exp()
    reached = small.minimise(lambda: small.loss(config, drawn, weights))
    assert_distribution(reached, optimum)
    still = gradient(small, small.loss(config, drawn, weights))
    assert still.abs().max() < 1e-6 * at_first.abs().max()


# ---------------------------------------------------------------- in the trainer


def weights_after_two_iterations(changes: dict[str, object]) -> Tensor:
    trainer = tiny_trainer(changed(settings("online_dpo"), changes))
    for _ in range(2):
        trainer.iterate(NoWriter())
    return torch.cat([p.detach().flatten() for p in trainer.actor.module.parameters()])


def test_microbatches_do_not_change_online_dpo():
    whole, small = (weights_after_two_iterations({"update.microbatch_size": n}) for n in (8, 2))
    assert (whole - small).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize("images_from", ["reference", "policy"])
def test_who_draws_the_images_of_dpok_sft(images_from):
    config = settings("dpok_sft", images_from=images_from)
    trained, untrained = tiny_trainer(config), tiny_trainer(config)
    metrics = trained.iterate(NoWriter())
    untrained.captions.next_batch(config.captions_per_iteration)
    untrained.progress.iteration = 1
    same = torch.equal(trained.collect().tokens, untrained.collect().tokens)
    assert same == (images_from == "reference")
    assert metrics["sampler_log_prob_gap"] < 1e-4
    assert trained.iterate(NoWriter())["sampler_log_prob_gap"] < 1e-4


def test_captions_whose_images_score_the_same_are_counted_and_left_out():
    for name in ("best_of_n", "online_dpo"):
        config = changed(settings(name), {"reward.terms.clip_similarity.weight": 0.0})
        trainer = tiny_trainer(config)
        chosen = []
        update = trainer.update
        trainer.update = lambda batch, update=update, chosen=chosen: chosen.append(batch) or update(batch)
        metrics = trainer.iterate(NoWriter())
        captions, images = config.captions_per_iteration, {"best_of_n": 1, "online_dpo": 2}[name]
        assert 0 < metrics["captions_without_spread"] < captions
        assert len(chosen[0]) == images * (captions - metrics["captions_without_spread"])
