"""Gradient checkpointing and logits in chunks: the same numbers with less memory."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_models import TINY, image_tokens, tiny_bart, tiny_prompts

from dalle_ppo.models.dalle import chunks
from dalle_ppo.models.dalle.checkpointing import set_checkpointing
from dalle_ppo.models.dalle.chunks import chunk_tokens
from dalle_ppo.models.dalle.critic import Critic
from dalle_ppo.models.dalle.family import DalleFamily
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.log_pi import kept_codes
from dalle_ppo.rl.records import Experience

ON_CPU = SimpleNamespace(device=torch.device("cpu"))  # all that scoring reads of the frozen parts

NUM_IMAGES = 4
GUIDED = PolicySettings(guidance=3.0, temperature=0.7)
TOP_K = replace(GUIDED, top_k=5)


def setup(settings=GUIDED, dtype=torch.float64):
    """A family, a policy, its reference, and images that none of them drew."""
    encoder, policy = tiny_bart(dtype=dtype)
    reference = tiny_bart(seed=7, dtype=dtype)[1].requires_grad_(False)
    tokens = image_tokens(NUM_IMAGES)
    kept = None
    if settings.top_k is not None:
        noise = torch.randn(*tokens.shape, TINY.num_codes, generator=torch.Generator().manual_seed(1))
        kept = kept_codes(noise, settings.top_k, tokens)
    experience = Experience(
        captions=("",) * NUM_IMAGES,
        tags=("",) * NUM_IMAGES,
        caption_ids=("",) * NUM_IMAGES,
        caption_index=torch.arange(2).repeat_interleave(2),
        tokens=tokens,
        sampler_log_probs=torch.zeros(tokens.shape),
        images=tokens,
        prompts=tiny_prompts(encoder, settings, 5, 8),
        kept=kept,
    )
    return DalleFamily(ON_CPU, settings), policy, reference, experience


def scores_and_gradients(family, policy, reference, experience):
    """All scores, and the gradient of a loss in which every token and every score has a weight of its own."""
    policy.zero_grad()
    largest = {"largest": lambda log_pi: log_pi.max(dim=-1).values}
    scores = family.score(policy, experience, entropy=True, reference=reference, extra=largest)
    parts = [scores.log_probs, scores.kl, scores.entropy, scores.extra["largest"]]
    weights = torch.randn(4, *parts[0].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (torch.stack(parts) * weights).sum().backward()
    return [part.detach() for part in parts], [p.grad.clone() for p in policy.parameters()]


@pytest.mark.parametrize("settings", [GUIDED, TOP_K, replace(GUIDED, guidance=1.0)], ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_change_neither_scores_nor_gradients(settings, chunk):
    family, *rest = setup(settings)
    whole, whole_gradients = scores_and_gradients(family, *rest)
    parts, gradients = scores_and_gradients(replace(family, logits_chunk=chunk), *rest)
    for ours, expected in zip(parts + gradients, whole + whole_gradients, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-11, rtol=1e-11)
    assert all(gradient.abs().max() > 1e-6 for gradient in gradients)


@torch.no_grad()
@pytest.mark.parametrize("settings", [GUIDED, TOP_K], ids=str)
def test_chunks_do_not_change_a_pass_without_gradient(settings):
    family, policy, reference, experience = setup(settings)
    for rows in (experience, replace(experience, kept=None)):
        whole = family.score(policy, rows, entropy=True, reference=reference)
        parts = replace(family, logits_chunk=5).score(policy, rows, entropy=True, reference=reference)
        for name in ("log_probs", "ref_log_probs", "kl", "entropy", "kl_full", "mass_outside"):
            expected = getattr(whole, name)
            assert (expected is None) == (settings.top_k is None and name in ("kl_full", "mass_outside"))
            if expected is not None:
                torch.testing.assert_close(getattr(parts, name), expected, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("gradient", [True, False])
def test_no_more_than_a_chunk_of_logits_exists(monkeypatch, gradient):
    family, policy, reference, experience = setup()
    rows, head = [], type(policy).head
    monkeypatch.setattr(
        type(policy), "head", lambda self, x: rows.append(x.shape[:-1].numel()) or head(self, x)
    )
    family = replace(family, logits_chunk=7)
    with torch.set_grad_enabled(gradient):
        scores = family.score(policy, experience, reference=reference)
        if gradient:
            scores.log_probs.sum().backward()
    assert max(rows) == 7
    passes = 2 * (2 if gradient else 1)  # actor and reference, and again in the backward pass
    assert sum(rows) == passes * experience.tokens.numel()


def test_an_automatic_chunk_is_512_tokens_of_dalles_codes():
    assert chunk_tokens("auto", 16384) == 512
    assert chunk_tokens("auto", 2 * chunks.LOGITS_AT_ONCE) == 1
    assert chunk_tokens(None, 16384) is None and chunk_tokens(3, 16384) == 3


@pytest.mark.parametrize("chunk", [None, 7])
def test_checkpointing_changes_no_bit_of_scores_and_gradients(chunk):
    family, policy, *rest = setup(dtype=torch.float32)
    family = replace(family, logits_chunk=chunk)
    kept, kept_gradients = scores_and_gradients(family, policy, *rest)
    set_checkpointing(policy, True)
    again, gradients = scores_and_gradients(family, policy, *rest)
    assert all(torch.equal(a, b) for a, b in zip(again + gradients, kept + kept_gradients, strict=True))


def test_checkpointing_keeps_no_activations_inside_a_layer():
    family, policy, _, experience = setup()
    critic = Critic(policy)

    def kept(call) -> int:
        saved = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
        ):
            call()
        parameters = {p.untyped_storage().data_ptr() for p in [*policy.parameters(), *critic.parameters()]}
        return sum(t.untyped_storage().nbytes() for address, t in saved.items() if address not in parameters)

    for network, call in (
        (policy, lambda: family.score(policy, experience)),
        (critic, lambda: family.values(critic, experience)),
    ):
        everything = kept(call)
        set_checkpointing(network, True)
        few = kept(call)
        assert few < 0.5 * everything, f"{type(network).__name__}: {few} of {everything} bytes"


def test_a_frozen_pass_is_not_checkpointed(monkeypatch):
    family, policy, _, experience = setup()
    set_checkpointing(policy, True)
    monkeypatch.setattr("dalle_ppo.models.dalle.checkpointing.checkpoint", None)
    with torch.no_grad():
        family.score(policy, experience)
    with pytest.raises(TypeError):
        family.score(policy, experience)
