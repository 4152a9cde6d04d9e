"""Training with top-k: the sampler stores the codes it draws from, and everything is scored on them."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import TINY, randomise, relative_difference, tiny_bart, tiny_prompts

from dalle_ppo.models.dalle.family import DalleFamily, FrozenParts, sample_in_parts
from dalle_ppo.models.dalle.memory_plan import plan_memory
from dalle_ppo.models.dalle.presets import VqganConfig
from dalle_ppo.models.dalle.sampling import Keep, log_pi_of_tokens, sample
from dalle_ppo.models.dalle.vqgan import VqganDecoder
from dalle_ppo.models.family import token_scores
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.noise import noise_keys
from dalle_ppo.rl.records import Experience

COUNT, K, V, T = 6, 5, TINY.num_codes, TINY.num_image_tokens
SETTINGS = PolicySettings(guidance=3.0, temperature=0.8, top_k=K)
EVERY = replace(SETTINGS, top_k=None)
SMALL = VqganConfig(
    channels=(8,), num_codes=V, code_width=4, blocks_per_level=1, norm_groups=4, attention=False, image_size=2
)
KEYS = noise_keys(0, "rollout", 0, ["a"] * COUNT, range(COUNT))


class Drawn:
    """Images of a tiny policy in float64, and another policy and a reference to score them with."""

    def __init__(self) -> None:
        self.encoder, self.policy = tiny_bart(dtype=torch.float64)
        self.policy.lm_head.weight.data.mul_(0.4)  # many codes are drawn
        self.later, self.reference = (randomise(tiny_bart(dtype=torch.float64)[1], seed) for seed in (21, 22))
        for other in (self.later, self.reference):
            other.lm_head.weight.data.mul_(0.4)
        self.prompts = tiny_prompts(self.encoder, SETTINGS, 4, 10, 7)
        self.samples = sample(self.policy, self.prompts, KEYS, SETTINGS, keep=Keep(codes=True))
        self.family = DalleFamily(FrozenParts(None, self.encoder, None), SETTINGS, stores_kept=True)

    def experience(self, **changes) -> Experience:
        drawn, empty = self.samples, ("",) * COUNT
        index = torch.arange(3).repeat_interleave(2)
        images = torch.zeros(COUNT, 3, 1, 1, dtype=torch.uint8)
        whole = Experience(
            empty, empty, empty, index, drawn.tokens, drawn.log_probs, images, drawn.kept, self.prompts
        )
        return replace(whole, **changes)

    def everywhere(self, decoder) -> list:
        """Probabilities of all codes, as nested lists [N][T][V], without top-k."""
        return log_pi_of_tokens(decoder, self.samples.tokens, self.prompts, EVERY).exp().tolist()


@pytest.fixture(scope="module")
def drawn():
    with torch.no_grad():
        return Drawn()


def on_set(probabilities: list[float], codes: list[int]) -> dict[int, float]:
    mass = math.fsum(probabilities[code] for code in codes)
    return {code: probabilities[code] / mass for code in codes}


def positions(drawn: Drawn):
    kept, tokens = drawn.samples.kept.tolist(), drawn.samples.tokens.tolist()
    return [(n, t, kept[n][t], tokens[n][t]) for n in range(COUNT) for t in range(T)]


@torch.no_grad()
def test_the_sampler_stores_its_k_most_likely_codes_and_their_log_probs(drawn):
    assert drawn.samples.kept.dtype == torch.int16 and drawn.samples.kept.shape == (COUNT, T, K)
    everywhere = drawn.everywhere(drawn.policy)
    for n, t, kept, token in positions(drawn):
        row = everywhere[n][t]
        assert kept == sorted(range(V), key=lambda code: -row[code])[:K] and token in kept
        expected = math.log(on_set(row, kept)[token])
        assert drawn.samples.log_probs[n, t].item() == pytest.approx(expected, abs=1e-5)
    assert len(drawn.samples.tokens.unique()) > K, "the sets must differ"


@torch.no_grad()
def test_storing_the_set_changes_no_image(drawn):
    usual = sample(drawn.policy, drawn.prompts, KEYS, SETTINGS)
    assert usual.kept is None and torch.equal(usual.tokens, drawn.samples.tokens)
    assert relative_difference(usual.log_probs, drawn.samples.log_probs) < 1e-6
    everything = sample(drawn.policy, drawn.prompts, KEYS, EVERY, keep=Keep(codes=True))
    assert everything.kept is None and not torch.equal(everything.tokens, usual.tokens)


@torch.no_grad()
def test_a_tie_with_the_last_code_is_stored_once_and_never_drawn_beyond_it(drawn):
    """All codes are equally likely: the package would draw from all, training from codes 0 to 4."""
    _, policy = tiny_bart(dtype=torch.float64)
    policy.lm_head.weight.zero_()
    tied = sample(policy, drawn.prompts, KEYS, SETTINGS, keep=Keep(codes=True))
    assert tied.kept.tolist() == [[list(range(K))] * T] * COUNT
    assert set(tied.tokens.unique().tolist()) == set(range(K))
    assert tied.log_probs.tolist() == [pytest.approx([-math.log(K)] * T)] * COUNT
    assert len(sample(policy, drawn.prompts, KEYS, SETTINGS).tokens.unique()) > K


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3])
def test_parts_of_a_batch_store_the_same_sets(drawn, batch_size):
    parts = sample_in_parts(drawn.policy, drawn.prompts, KEYS, SETTINGS, batch_size, keep=Keep(codes=True))
    assert torch.equal(parts.tokens, drawn.samples.tokens) and torch.equal(parts.kept, drawn.samples.kept)


@torch.no_grad()
def test_all_scores_are_those_of_the_distribution_on_the_stored_set(drawn):
    scores = drawn.family.score(
        drawn.later, drawn.experience(), entropy=True, reference=drawn.reference,
        extra={"largest": lambda log_pi: log_pi.amax(-1)},
    )  # fmt: skip
    pi, ref, left = drawn.everywhere(drawn.later), drawn.everywhere(drawn.reference), 0
    for n, t, kept, token in positions(drawn):
        p, q, whole = (
            on_set(pi[n][t], kept),
            on_set(ref[n][t], kept),
            list(zip(pi[n][t], ref[n][t], strict=True)),
        )
        expected = {
            "log_probs": math.log(p[token]),
            "ref_log_probs": math.log(q[token]),
            "entropy": -math.fsum(p[a] * math.log(p[a]) for a in kept),
            "kl": math.fsum(p[a] * math.log(p[a] / q[a]) for a in kept),
            "kl_full": math.fsum(a * math.log(a / b) for a, b in whole),
            "mass_outside": 1 - math.fsum(pi[n][t][a] for a in kept),
        }
        found = {name: getattr(scores, name)[n, t].item() for name in expected}
        assert found == pytest.approx(expected, abs=1e-10)
        assert scores.extra["largest"][n, t].item() == pytest.approx(math.log(max(p.values())))
        left += sorted(range(V), key=lambda code: -pi[n][t][code]).index(token) >= K
    assert left > 0, "some drawn codes must have left the later policy's own top k"


@torch.no_grad()
def test_the_samplers_log_probs_give_a_ratio_of_1_and_without_the_set_the_kept_mass(drawn):
    scores = drawn.family.score(drawn.policy, drawn.experience())
    old = drawn.samples.log_probs
    assert ((scores.log_probs - old).exp() - 1).abs().max() < 1e-5
    forgetful = replace(drawn.family, settings=EVERY)
    ratio = (forgetful.score(drawn.policy, drawn.experience(kept=None)).log_probs - old).exp()
    kept_mass = 1 - scores.mass_outside
    assert kept_mass.mean() < 0.97, "the set must leave something out"
    assert ratio.mean().item() == pytest.approx(kept_mass.mean().item(), abs=1e-5)


@torch.no_grad()
def test_an_evaluation_scores_on_the_policys_own_codes_and_the_drawn_one(drawn):
    """Nothing is stored there; a drawn code that rounding pushes out of the set must not cost -inf."""
    stored, own = (
        drawn.family.score(drawn.policy, rows, entropy=True, reference=drawn.reference)
        for rows in (drawn.experience(), drawn.experience(kept=None))
    )
    for name in ("log_probs", "ref_log_probs", "entropy", "kl", "kl_full", "mass_outside"):
        torch.testing.assert_close(getattr(own, name), getattr(stored, name), rtol=1e-9, atol=1e-9)
    other = drawn.family.score(drawn.later, drawn.experience(kept=None), reference=drawn.reference)
    assert other.log_probs.isfinite().all() and other.kl.isfinite().all()


def test_the_gradient_is_that_of_the_set_and_nothing_outside_it_moves():
    """d log pi_S(a) / dz is 1[a] - pi_S on the set and 0 elsewhere, whatever the guidance."""
    logits = torch.randn(1, 1, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logits.requires_grad_()
    kept, token = torch.tensor([[[7, 2, 9]]], dtype=torch.int16), torch.tensor([[2]])
    scores = token_scores(logits.log_softmax(-1), token, logits.detach().log_softmax(-1), kept=kept)
    assert scores.kl_full is None and scores.mass_outside is None, "they cost time and need no gradient"
    scores.log_probs.sum().backward()
    expected = torch.zeros(V, dtype=torch.float64)
    share = on_set(logits[0, 0].exp().tolist(), [7, 2, 9])
    for code in (7, 2, 9):
        expected[code] = (code == 2) - share[code]
    torch.testing.assert_close(logits.grad[0, 0], expected, rtol=1e-10, atol=1e-12)


def test_the_memory_plan_counts_the_stored_sets():
    encoder, decoder = tiny_bart()
    vqgan = VqganDecoder(SMALL)
    plain, kept = (plan_memory(decoder, vqgan, s, 1000, 1e9) for s in (EVERY, SETTINGS))
    assert kept.kept_bytes == 2 * 1000 * T * K * 2 and plain.kept_bytes == 0
    assert "stored codes" in str(kept) and "stored codes" not in str(plain)
    budget = 500 * plain.image_bytes
    plain, kept = (plan_memory(decoder, vqgan, s, 1000, budget) for s in (EVERY, SETTINGS))
    assert plain.batch_size == 500
    assert kept.batch_size == int((budget - kept.kept_bytes) / plain.image_bytes) < 500
    with pytest.raises(ValueError, match="one image needs"):
        plan_memory(decoder, vqgan, replace(SETTINGS, top_k=V), 10**6, budget)
    drawing_only = DalleFamily(FrozenParts(None, encoder, vqgan), SETTINGS)
    assert drawing_only.plan(decoder, 1000).kept_bytes == 0
