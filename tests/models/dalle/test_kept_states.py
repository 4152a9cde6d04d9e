"""States that the sampler keeps say the same as running the policy over its tokens again."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_bart, tiny_prompts

from dalle_ppo.models.dalle.family import DalleFamily, sample_in_parts
from dalle_ppo.models.dalle.sampling import Keep, hidden_of_tokens, log_pi_of_hidden, log_pi_of_tokens, sample
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.noise import noise_keys
from dalle_ppo.rl.records import Experience

ON_CPU = SimpleNamespace(device=torch.device("cpu"))  # all that scoring reads of the frozen parts

SETTINGS = [
    PolicySettings(guidance=3.0),
    PolicySettings(guidance=1.0, temperature=0.8),
    PolicySettings(guidance=3.0, detach_unconditional=True),
]


def drawn(settings, batch_size=None):
    """Decoder, prompts, and six images of two captions."""
    encoder, decoder = tiny_bart()
    prompts, keys = tiny_prompts(encoder, settings, 8, 5), noise_keys(0, "evaluation", 0, ["a"] * 6, range(6))
    if batch_size is None:
        return decoder, prompts, sample(decoder, prompts, keys, settings, keep=Keep(hidden=True))
    kept = Keep(hidden=True)
    return decoder, prompts, sample_in_parts(decoder, prompts, keys, settings, batch_size, kept)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("batch_size", [None, 6, 4, 2])
@torch.no_grad()
def test_kept_states_are_those_of_teacher_forcing(settings, batch_size):
    decoder, prompts, samples = drawn(settings, batch_size)
    again = hidden_of_tokens(decoder, samples.tokens, prompts, settings)
    torch.testing.assert_close(samples.hidden.conditional, again.conditional, atol=1e-5, rtol=1e-5)
    assert (samples.hidden.unconditional is None) == (settings.guidance == 1)
    log_pi = log_pi_of_tokens(decoder, samples.tokens, prompts, settings)
    kept = log_pi_of_hidden(decoder, samples.hidden, settings)
    torch.testing.assert_close(kept, log_pi, atol=1e-5, rtol=1e-5)
    assert (kept - log_pi.roll(1, dims=1)).abs().max() > 1e-2, "positions differ by more than that"


@pytest.mark.parametrize("settings", SETTINGS[:1], ids=str)
def test_keeping_states_changes_nothing_that_is_drawn(settings):
    decoder, prompts, samples = drawn(settings)
    keys = noise_keys(0, "evaluation", 0, ["a"] * 6, range(6))
    plain = sample(decoder, prompts, keys, settings)
    assert plain.hidden is None
    assert torch.equal(plain.tokens, samples.tokens) and torch.equal(plain.log_probs, samples.log_probs)


def scored(rows, reference=True, **changes):
    """Scores of the images at `rows`, with kept states or without."""
    settings = SETTINGS[0]
    decoder, prompts, samples = drawn(settings)
    experience = Experience(
        captions=("",) * 6,
        tags=("",) * 6,
        caption_ids=("",) * 6,
        caption_index=torch.arange(2).repeat_interleave(3),
        tokens=samples.tokens,
        sampler_log_probs=samples.log_probs,
        images=samples.tokens,
        prompts=prompts,
        policy_states=samples.hidden,
    )
    experience = dataclasses.replace(experience.select(torch.tensor(rows)), **changes)
    other = tiny_bart(seed=7)[1] if reference else None
    return DalleFamily(ON_CPU, settings).score(decoder, experience, entropy=True, reference=other)


@torch.no_grad()
def test_scores_from_kept_states_are_the_scores():
    kept, again = scored([0, 3, 4]), scored([0, 3, 4], policy_states=None)
    for name in ("log_probs", "entropy", "ref_log_probs", "kl"):
        torch.testing.assert_close(getattr(kept, name), getattr(again, name), atol=1e-5, rtol=1e-5)
    assert kept.kl.sum() > 1e-3 and 0 < kept.entropy.mean() < math.log(10_000)


@torch.no_grad()
def test_kept_states_spare_the_policy_a_pass(monkeypatch):
    from dalle_ppo.models.dalle.bart import BartDecoder

    passes = []
    forward = BartDecoder.forward
    monkeypatch.setattr(BartDecoder, "forward", lambda *args: passes.append(1) or forward(*args))
    scored([0, 3], reference=False)
    assert not passes
    scored([0, 3], reference=False, policy_states=None)
    assert len(passes) == 2, "one for each branch"


def test_scores_with_a_gradient_do_not_come_from_kept_states():
    assert scored([0, 3]).log_probs.requires_grad
    kept, again = scored([0, 3]), scored([0, 3], policy_states=None)
    assert torch.equal(kept.log_probs, again.log_probs)
