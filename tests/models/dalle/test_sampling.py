"""The policy's distribution and the sampler, against enumeration and scipy."""

import itertools
import math
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import scipy.stats
import torch
from tiny_models import TINY, image_tokens, relative_difference, tiny_bart, tiny_prompts

from dalle_ppo.models.dalle.family import sample_in_parts
from dalle_ppo.models.dalle.sampling import Prompts, guided_log_pi, log_pi_of_tokens, sample, sample_branches
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.log_pi import gather_log_probs
from dalle_ppo.rl.noise import gumbel_noise, noise_keys


def keys_of(count: int, seed: int = 0, caption: str = "a") -> torch.Tensor:
    return noise_keys(seed, "rollout", 0, [caption] * count, range(count))


def random_hidden(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, TINY.width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def enumerated_log_pi(weight, conditional, unconditional, settings: PolicySettings) -> list[float]:
    """The definition, code by code: guide the logits, divide by the temperature, keep the top k."""
    l_c = [sum(w * h for w, h in zip(row, conditional, strict=True)) for row in weight]
    l_u = [sum(w * h for w, h in zip(row, unconditional, strict=True)) for row in weight]
    guided = [u + settings.guidance * (c - u) for c, u in zip(l_c, l_u, strict=True)]
    k = len(guided) if settings.top_k is None else settings.top_k
    lowest = sorted(guided, reverse=True)[:k][-1]
    weights = [math.exp(g / settings.temperature) if g >= lowest else 0.0 for g in guided]
    return [math.log(w / math.fsum(weights)) if w else -math.inf for w in weights]


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.0, 16.0, 0.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("detach", [False, True])
def test_guided_log_pi_is_the_enumerated_distribution(guidance, temperature, top_k, detach):
    settings = PolicySettings(guidance, temperature, top_k, detach_unconditional=detach)
    _, decoder = tiny_bart(dtype=torch.float64)
    c, u = random_hidden(3, seed=1), random_hidden(3, seed=2)
    log_pi = guided_log_pi(decoder, c, u if settings.guided else None, settings)
    weight = decoder.lm_head.weight[: TINY.num_codes].tolist()
    expected = [
        enumerated_log_pi(weight, *pair, settings) for pair in zip(c.tolist(), u.tolist(), strict=True)
    ]
    torch.testing.assert_close(log_pi, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(log_pi.exp().sum(-1), torch.ones(3, dtype=torch.float64))


def identity_head():
    """A decoder whose logits are the hidden states."""
    config = replace(TINY, image_vocab_count=TINY.width, num_codes=4)
    _, decoder = tiny_bart(config, dtype=torch.float64)
    decoder.lm_head.weight = torch.nn.Parameter(torch.eye(TINY.width + 1, TINY.width, dtype=torch.float64))
    return decoder


@torch.no_grad()
def test_top_k_keeps_all_codes_that_tie_with_the_kth():
    decoder = identity_head()
    hidden = torch.zeros(1, TINY.width, dtype=torch.float64)
    hidden[0, :4] = torch.tensor([2.0, 3.0, 2.0, 1.0])
    log_pi = guided_log_pi(decoder, hidden, None, PolicySettings(guidance=1.0, top_k=2))
    e = math.e
    expected = torch.tensor([[1, e, 1, 0]], dtype=torch.float64) / (e + 2)
    torch.testing.assert_close(log_pi.exp(), expected)
    everything = guided_log_pi(decoder, hidden, None, PolicySettings(guidance=1.0, top_k=99))
    assert torch.isfinite(everything).all()


@torch.no_grad()
@pytest.mark.parametrize("autocast", [False, True])
def test_head_guidance_and_softmax_are_float32_for_narrow_weights(autocast):
    _, decoder = tiny_bart(dtype=torch.bfloat16)
    c, u = random_hidden(5, seed=1).bfloat16(), random_hidden(5, seed=2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        log_pi = guided_log_pi(decoder, c, u, PolicySettings(guidance=16.0))
    weight = decoder.lm_head.weight[: TINY.num_codes].double()
    l_c, l_u = c.double() @ weight.T, u.double() @ weight.T
    assert log_pi.dtype == torch.float32
    assert (log_pi - (l_u + 16 * (l_c - l_u)).log_softmax(-1)).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampler_log_probs_are_the_teacher_forced_ones(guidance):
    settings = PolicySettings(guidance=guidance, temperature=0.8)
    encoder, decoder = tiny_bart(dtype=torch.float64)
    decoder.lm_head.weight.mul_(0.4)  # many codes are drawn
    prompts = tiny_prompts(encoder, settings, 4, 10, 7)
    drawn = sample(decoder, prompts, keys_of(6), settings)
    log_pi = log_pi_of_tokens(decoder, drawn.tokens, prompts, settings)
    assert drawn.tokens.shape == (6, TINY.num_image_tokens) and drawn.log_probs.dtype == torch.float32
    assert len(drawn.tokens.unique()) > 6
    assert (drawn.log_probs - gather_log_probs(log_pi, drawn.tokens)).abs().max() < 1e-5
    assert drawn.log_probs.std() > 0.3


@torch.no_grad()
def test_gather_log_probs_takes_each_tokens_own():
    log_pi = random_hidden(2, 3)[..., : TINY.num_codes]
    tokens = torch.tensor([[0, 5, 11], [3, 3, 1]])
    picked = gather_log_probs(log_pi, tokens)
    assert all(picked[b, t] == log_pi[b, t, tokens[b, t]] for b in range(2) for t in range(3))


@torch.no_grad()
@pytest.mark.parametrize(
    "settings", [PolicySettings(3.0, 0.8), PolicySettings(1.0), PolicySettings(2.0, 1.3, top_k=3)]
)
def test_frequencies_of_whole_images_are_the_distributions(settings):
    config = replace(TINY, num_codes=4, image_vocab_count=4, num_image_tokens=3)
    encoder, decoder = tiny_bart(config, seed=4)
    decoder.lm_head.weight.mul_(0.6)
    prompts = tiny_prompts(encoder, settings, 5, config=config)
    count = 6000
    drawn = sample(decoder, prompts, keys_of(count), settings).tokens
    every = torch.tensor(list(itertools.product(range(4), repeat=3)))
    log_pi = log_pi_of_tokens(decoder, every, prompts, settings)
    expected = gather_log_probs(log_pi, every).double().sum(1).exp().numpy() * count
    digits = torch.tensor([16, 4, 1])
    observed = np.bincount((drawn * digits).sum(1).numpy(), minlength=64)
    assert expected.sum() == pytest.approx(count, rel=1e-4)
    assert not observed[expected == 0].any()
    rare = expected < 5
    pooled = [np.append(x[~rare], x[rare].sum() + 1e-9) for x in (observed, expected)]
    pooled[1] *= pooled[0].sum() / pooled[1].sum()
    assert len(pooled[0]) > 8
    assert scipy.stats.chisquare(*pooled).pvalue > 1e-3


def test_noise_is_gumbel_distributed():
    noise = gumbel_noise(keys_of(16), 3, 16384).flatten().numpy()
    assert noise.dtype == np.float32 and np.isfinite(noise).all()
    assert scipy.stats.kstest(noise, "gumbel_r").pvalue > 1e-3
    maxima = gumbel_noise(keys_of(3000), 0, 64).amax(1).numpy() - math.log(64)
    assert scipy.stats.kstest(maxima, "gumbel_r").pvalue > 1e-3


def as_normal(noise: torch.Tensor) -> np.ndarray:
    """Gumbel to normal variates: their correlations have a known spread."""
    return scipy.stats.norm.ppf(np.clip(scipy.stats.gumbel_r.cdf(noise.double().numpy()), 1e-9, 1 - 1e-9))


@pytest.mark.parametrize("keys", ["hashed", "first word counts", "second word counts", "words trade"])
def test_noise_is_independent_between_positions_and_images(keys):
    counted = torch.arange(12, dtype=torch.int32)
    zero = torch.zeros_like(counted)
    words = {
        "hashed": keys_of(12),
        "first word counts": torch.stack([counted, zero], 1),
        "second word counts": torch.stack([zero, counted], 1),
        "words trade": torch.stack([counted, -counted], 1),
    }[keys]
    codes = 4096
    series = as_normal(torch.cat([gumbel_noise(words, position, codes) for position in range(12)]))
    correlation = np.corrcoef(series)[np.triu_indices(len(series), 1)] * math.sqrt(codes)
    # Of 10296 standard normals the largest stays below 5.5 (probability 1 - 4e-4).
    assert np.abs(correlation).max() < 5.5
    assert correlation.std() == pytest.approx(1, abs=0.05)


def test_noise_is_independent_between_codes():
    series = as_normal(gumbel_noise(keys_of(40), 5, 4096))
    for lag in [*range(1, 20), 32, 64, 100, 128, 256, 1000, 1024, 2048]:
        pairs = series[:, lag:] * series[:, :-lag]
        assert abs(pairs.sum() / math.sqrt(pairs.size)) < 4.5, f"lag {lag}"
    neighbours = scipy.stats.norm.cdf(series)
    cells = (neighbours[:, :-1:2] * 16).astype(int) * 16 + (neighbours[:, 1::2] * 16).astype(int)
    assert scipy.stats.chisquare(np.bincount(cells.ravel(), minlength=256)).pvalue > 1e-3


def lowbias32(x: int) -> int:
    """In Python's unbounded integers: the published mixer, on unsigned words."""
    x ^= x >> 16
    x = x * 0x21F0AAAD % 2**32
    x ^= x >> 15
    x = x * 0x735A2D97 % 2**32
    return x ^ x >> 15


def test_noise_is_that_of_unsigned_words():
    keys = torch.tensor([[-5, 7], [2**31 - 1, -(2**31)]], dtype=torch.int32)
    for position in (0, 255):
        noise = gumbel_noise(keys, position, 2000)
        for image, (first, second) in enumerate(keys.tolist()):
            inner = lowbias32((first + lowbias32(position * 0x632B + 0x1234567)) % 2**32)
            for code in (0, 1, 1999):
                word = lowbias32((lowbias32((code * 0x3C6EF35 + inner) % 2**32) + second) % 2**32)
                uniform = ((word >> 9) + 0.5) / 2**23
                expected = -math.log(-math.log(uniform))
                assert noise[image, code].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("codes", [5, 1000, 16384])
def test_noise_of_an_image_does_not_depend_on_its_batch(codes):
    keys = keys_of(7)
    before = keys.clone()
    batch = gumbel_noise(keys, 11, codes)
    assert torch.equal(keys, before)
    for i in range(7):
        assert torch.equal(gumbel_noise(keys[i : i + 1], 11, codes)[0], batch[i])
    order = torch.tensor([6, 2, 4])
    assert torch.equal(gumbel_noise(keys[order], 11, codes), batch[order])


@torch.no_grad()
def test_tokens_of_an_image_do_not_depend_on_its_batch():
    settings = PolicySettings(guidance=3.0)
    encoder, decoder = tiny_bart(dtype=torch.float64)
    prompts, keys = tiny_prompts(encoder, settings, 4, 10, 7), keys_of(6)
    batch = sample(decoder, prompts, keys, settings).tokens
    for i in range(6):
        one = prompts.select(torch.tensor([i // 2]))
        assert torch.equal(sample(decoder, one, keys[i : i + 1], settings).tokens[0], batch[i])


def test_streams_of_noise_differ_in_each_of_their_parts():
    base = {"seed": 1, "stream": "rollout", "iteration": 1, "caption_ids": ["a1"], "samples": [1]}
    changes = [
        {"seed": 2},
        {"stream": "evaluation"},
        {"iteration": 2},
        {"caption_ids": ["b"]},
        {"samples": [2]},
        # The same characters, divided otherwise.
        {"seed": 11, "iteration": 1},
        {"iteration": 11, "seed": 1},
        {"caption_ids": ["a"], "samples": [11]},
        {"caption_ids": ["1|a1"]},
        {"caption_ids": ["a1|1"]},
    ]
    keys = [noise_keys(**base)] + [noise_keys(**{**base, **change}) for change in changes]
    assert torch.equal(keys[0], noise_keys(**base))
    assert all(key.shape == (1, 2) and key.dtype == torch.int32 for key in keys)
    assert len({tuple(key[0].tolist()) for key in keys}) == len(keys)
    together = noise_keys(1, "rollout", 1, ["b", "a1"], [1, 1])
    assert torch.equal(together[1:], keys[0])


def test_a_key_a_caption_and_a_sample_each():
    with pytest.raises(ValueError):
        noise_keys(0, "rollout", 0, ["a", "b"], [0])


@torch.no_grad()
def test_images_that_do_not_divide_among_captions_are_refused():
    settings = PolicySettings()
    encoder, decoder = tiny_bart()
    with pytest.raises(ValueError, match="5 images do not divide among 2 captions"):
        sample(decoder, tiny_prompts(encoder, settings, 4, 5), keys_of(5), settings)


def objective(decoder, tokens, prompts: Prompts, settings: PolicySettings) -> torch.Tensor:
    log_pi = log_pi_of_tokens(decoder, tokens, prompts, settings)
    weights = torch.linspace(-1, 2, tokens.numel(), dtype=torch.float64).view(tokens.shape)
    return (weights * gather_log_probs(log_pi, tokens)).sum()


@torch.no_grad()
def logits_of(decoder, tokens, text) -> torch.Tensor:
    weight = decoder.lm_head.weight[: TINY.num_codes]
    return decoder(tokens, decoder.cross_states(text)) @ weight.T


def slope(decoder, direction, function, eps: float = 1e-6) -> float:
    """Central difference of `function()` as the decoder's parameters move along `direction`."""
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(decoder.parameters(), direction, strict=True):
                p.add_(sign * eps * d)
            ends.append(float(function()))
            for p, d in zip(decoder.parameters(), direction, strict=True):
                p.sub_(sign * eps * d)
    return (ends[0] - ends[1]) / (2 * eps)


@pytest.mark.parametrize("part", ["all", "lm_head", "encoder_attn.k_proj", "embed_tokens"])
@pytest.mark.parametrize("detach", [False, True])
def test_gradient_flows_through_both_branches_unless_the_unconditional_is_detached(detach, part):
    settings = PolicySettings(guidance=3.0, temperature=0.8, detach_unconditional=detach)
    encoder, decoder = tiny_bart(dtype=torch.float64)
    prompts, tokens = tiny_prompts(encoder, settings, 4, 10), image_tokens(4)
    objective(decoder, tokens, prompts, settings).backward()
    generator = torch.Generator().manual_seed(2)
    direction = [
        torch.randn(p.shape, generator=generator, dtype=torch.float64) * (part == "all" or part in name)
        for name, p in decoder.named_parameters()
    ]
    pairs = zip(decoder.named_parameters(), direction, strict=True)
    autograd = sum(float((p.grad * d).sum()) for (_, p), d in pairs if p.grad is not None)
    frozen = logits_of(decoder, tokens, prompts.unconditional)
    weights = torch.linspace(-1, 2, tokens.numel(), dtype=torch.float64).view(tokens.shape)

    def by_hand(l_u=None):
        l_c = logits_of(decoder, tokens, prompts.text)
        l_u = logits_of(decoder, tokens, prompts.unconditional) if l_u is None else l_u
        z = (3.0 * l_c + (1 - 3.0) * l_u) / 0.8
        chosen = z.gather(-1, tokens[..., None])[..., 0] - z.logsumexp(-1)
        return (weights * chosen).sum()

    through_both = slope(decoder, direction, by_hand)
    through_one = slope(decoder, direction, lambda: by_hand(frozen))
    assert abs(through_both - through_one) > 0.05 * abs(through_both)
    assert autograd == pytest.approx(through_one if detach else through_both, rel=1e-6)


@pytest.mark.parametrize("detach", [False, True])
def test_gradcheck_of_the_guided_distribution(detach):
    settings = PolicySettings(guidance=3.0, temperature=0.8, detach_unconditional=detach)
    _, decoder = tiny_bart(dtype=torch.float64)
    c, u = (random_hidden(3, seed=seed).requires_grad_() for seed in (1, 2))

    def of_both(c, u):
        return guided_log_pi(decoder, c, u, settings)

    if detach:
        assert torch.autograd.gradcheck(lambda c: of_both(c, u), c)
    else:
        assert torch.autograd.gradcheck(of_both, (c, u))
    to_c, to_u = torch.autograd.grad(of_both(c, u)[:, 0].sum(), (c, u), allow_unused=True)
    assert to_c.abs().min() > 0
    assert to_u is None if detach else to_u.abs().min() > 0


@torch.no_grad()
def test_detaching_changes_no_value():
    encoder, decoder = tiny_bart(dtype=torch.float64)
    settings = PolicySettings(guidance=3.0)
    prompts, tokens = tiny_prompts(encoder, settings, 4, 10), image_tokens(4)
    both = [
        log_pi_of_tokens(decoder, tokens, prompts, replace(settings, detach_unconditional=detach))
        for detach in (False, True)
    ]
    assert relative_difference(*both) < 1e-12


@torch.no_grad()
def test_guidance_of_one_needs_no_unconditional_caption():
    settings = PolicySettings(guidance=1.0)
    encoder, decoder = tiny_bart(dtype=torch.float64)
    prompts, tokens = tiny_prompts(encoder, settings, 4, 10), image_tokens(4)
    assert prompts.unconditional is None
    log_pi = log_pi_of_tokens(decoder, tokens, prompts, settings)
    assert relative_difference(log_pi, logits_of(decoder, tokens, prompts.text).log_softmax(-1)) < 1e-12


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 12])
def test_no_image_depends_on_where_a_batch_is_cut(batch_size):
    """Three captions of four images, in float64: parts of a caption, whole ones, several."""
    settings = PolicySettings(guidance=3.0)
    encoder, decoder = tiny_bart(dtype=torch.float64)
    prompts, keys, sizes = tiny_prompts(encoder, settings, 4, 10, 7), keys_of(12), []

    def counted(decoder, branches, keys, *rest):
        sizes.append(len(keys))
        return sample_branches(decoder, branches, keys, *rest)

    with patch("dalle_ppo.models.dalle.family.sample_branches", counted):
        parts = sample_in_parts(decoder, prompts, keys, settings, batch_size)
    whole = sample(decoder, prompts, keys, settings)
    assert torch.equal(parts.tokens, whole.tokens)
    assert relative_difference(parts.log_probs, whole.log_probs) <= 1e-6
    assert sum(sizes) == 12 and max(sizes) <= batch_size
