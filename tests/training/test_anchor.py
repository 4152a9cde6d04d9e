"""The anchor's gradient against a loop over images, positions and codes in float64, and what it promises."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.training.anchor import Anchor, anchor_backward, draw_anchor
from tests.tiny_trainer import TINY_CONFIG, NoWriter, changed, tiny_trainer

CODES, TOKENS, IMAGES = 5, 4, 6
ANCHORED = {"anchor.coef": 0.7, "anchor.num_images": 8, "anchor.minibatch_size": 4}


class Bigram(nn.Module):
    """A policy whose next code depends on the last one."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(torch.randn(CODES, CODES, generator=generator, dtype=torch.float64))

    def log_pi(self, tokens):
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)
        return self.logits.log_softmax(-1)[before]


class Images:
    """As much of an `Experience` as the anchor reads."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __len__(self):
        return len(self.tokens)

    def select(self, rows):
        return Images(self.tokens[rows])


class Family:
    def score(self, policy, images, *, reference, entropy):
        now, ref = policy.log_pi(images.tokens), reference.log_pi(images.tokens).detach()
        nats = -(now.exp() * now).sum(-1) if entropy else None
        return SimpleNamespace(kl=(now.exp() * (now - ref)).sum(-1), entropy=nats)


def by_hand(policy: Bigram, reference: Bigram, tokens: list[list[int]]) -> tuple[float, torch.Tensor]:
    """KL per image, and the gradient of its mean per token: d KL / d z_b = p_b (log p_b / q_b - KL)."""
    p, q = policy.logits.softmax(-1).tolist(), reference.logits.softmax(-1).tolist()
    total, gradient = 0.0, torch.zeros(CODES, CODES, dtype=torch.float64)
    for image in tokens:
        for last in [0, *image[:-1]]:
            ratios = [math.log(p[last][b] / q[last][b]) for b in range(CODES)]
            kl = sum(p[last][b] * ratios[b] for b in range(CODES))
            total += kl
            for b in range(CODES):
                gradient[last, b] += p[last][b] * (ratios[b] - kl)
    return total / len(tokens), gradient / (len(tokens) * TOKENS)


@pytest.mark.parametrize("microbatch_size", [1, 4, 6])
def test_gradient_is_that_of_the_exact_kl(microbatch_size):
    policy, reference = Bigram(1), Bigram(2)
    tokens = torch.randint(CODES, (IMAGES, TOKENS), generator=torch.Generator().manual_seed(3))
    expected_kl, expected = by_hand(policy, reference, tokens.tolist())
    anchor = Anchor(Images(tokens), coef=0.7, minibatch_size=IMAGES)
    kl = anchor_backward(anchor, Family(), (policy, reference), microbatch_size, torch.Generator())
    assert kl == pytest.approx(expected_kl, rel=1e-12)
    torch.testing.assert_close(policy.logits.grad, 0.7 * expected, rtol=1e-10, atol=1e-14)


def test_at_a_temperature_it_pulls_to_the_reference_at_that_temperature():
    policy, reference, colder = Bigram(1), Bigram(2), Bigram(2)
    colder.logits.data /= 0.6
    tokens = torch.randint(CODES, (IMAGES, TOKENS), generator=torch.Generator().manual_seed(3))
    expected_kl, _ = by_hand(policy, reference, tokens.tolist())
    _, expected = by_hand(policy, colder, tokens.tolist())
    anchor = Anchor(Images(tokens), coef=0.7, minibatch_size=IMAGES, temperature=0.6)
    kl = anchor_backward(anchor, Family(), (policy, reference), 4, torch.Generator())
    assert kl == pytest.approx(expected_kl, rel=1e-12)  # what is reported is the KL from the reference itself
    torch.testing.assert_close(policy.logits.grad, 0.7 * 0.6 * expected, rtol=1e-10, atol=1e-14)


def test_the_anchor_adds_to_a_gradient_that_is_there():
    policy, reference = Bigram(1), Bigram(2)
    tokens = torch.randint(CODES, (IMAGES, TOKENS), generator=torch.Generator().manual_seed(3))
    policy.logits.grad = torch.ones(CODES, CODES, dtype=torch.float64)
    anchor = Anchor(Images(tokens), coef=1.0, minibatch_size=IMAGES)
    anchor_backward(anchor, Family(), (policy, reference), 6, torch.Generator())
    _, expected = by_hand(policy, reference, tokens.tolist())
    torch.testing.assert_close(policy.logits.grad, 1 + expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_holds_before_the_first_step_and_its_images_are_counted(dtype):
    precision = {"update.dtype": dtype, "policy.guidance": 16.0}
    trainer = tiny_trainer(changed(TINY_CONFIG, ANCHORED | precision))
    assert trainer.progress.images == 8
    networks = trainer.networks
    untouched = networks.actor, networks.reference
    kl = anchor_backward(networks.anchor, trainer.family, untouched, 4, torch.Generator())
    assert kl == pytest.approx(0, abs=1e-6)  # the sampler's states round differently
    gradients = [p.grad for p in networks.actor.parameters() if p.grad is not None]
    assert gradients and max(float(gradient.abs().max()) for gradient in gradients) < 1e-3
    trainer.actor.optimizer.zero_grad()
    metrics = trainer.iterate(NoWriter())
    assert metrics["images"] == 8 + TINY_CONFIG.rollout.rollout_batch_size
    assert metrics["anchor_kl"] > 0


def test_the_same_seed_draws_the_same_anchor():
    first, again, other = (
        tiny_trainer(changed(TINY_CONFIG, ANCHORED | {"seed": seed})).networks.anchor.images.tokens
        for seed in (0, 0, 1)
    )
    assert first.equal(again) and not first.equal(other)


def test_its_states_are_those_that_scoring_gives_and_no_pixels_are_decoded(monkeypatch):
    trainer = tiny_trainer(TINY_CONFIG)
    monkeypatch.setattr(type(trainer.family), "decode", None)
    monkeypatch.setattr(type(trainer.family.parts.vqgan), "decode_uint8", None)
    config = changed(TINY_CONFIG, ANCHORED)
    captions = [CaptionRecord("a", "a red sun", "UNLIKELY"), CaptionRecord("b", "two", "UNLIKELY")]
    images = draw_anchor(trainer.family, trainer.networks.reference, captions, config).images
    expected = trainer.family.remember(trainer.networks.reference, images)
    torch.testing.assert_close(images.reference_states.conditional, expected.conditional)
    torch.testing.assert_close(images.reference_states.unconditional, expected.unconditional)


def test_without_a_weight_there_is_no_anchor():
    trainer = tiny_trainer(TINY_CONFIG)
    assert trainer.networks.anchor is None
    assert trainer.iterate(NoWriter())["anchor_kl"] is None
