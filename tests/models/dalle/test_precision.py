"""bfloat16 products and frozen matrices, against float64 and against autocast alone."""

from dataclasses import replace

import pytest
import torch
from tiny_models import image_tokens, tiny_bart, tiny_prompts
from tiny_trainer import TINY_CONFIG, NoWriter, changed, tiny_trainer

from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.dalle.adapted import whole_decoder
from dalle_ppo.models.dalle.sampling import log_pi_of_tokens, sample
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.models.precision import autocast, narrow
from dalle_ppo.rl.log_pi import gather_log_probs
from dalle_ppo.rl.noise import noise_keys

CPU = torch.device("cpu")
HALF = changed(TINY_CONFIG, {"update.dtype": "bfloat16"})
FROZEN = changed(HALF, {"model.frozen_dtype": "bfloat16"})


@torch.no_grad()
def scored(tokens, settings: PolicySettings, dtype: torch.dtype) -> torch.Tensor:
    """Log-probs of tokens [N, T] with products in `dtype`; float64 has weights in float64, too."""
    encoder, decoder = tiny_bart(dtype=torch.promote_types(dtype, torch.float32))
    prompts = tiny_prompts(encoder, settings, 4, 7)
    with autocast(CPU, dtype):
        log_pi = log_pi_of_tokens(decoder, tokens, prompts, settings)
    assert log_pi.dtype == torch.promote_types(dtype, torch.float32), "the head and the softmax stay wide"
    return gather_log_probs(log_pi, tokens).double()


@pytest.mark.parametrize("guidance, largest", [(1.0, 0.08), (16.0, 0.08 * 22)])
def test_log_probs_against_float64(guidance, largest):
    settings, tokens = PolicySettings(guidance=guidance), image_tokens(32)
    exact = scored(tokens, settings, torch.float64)
    single = (scored(tokens, settings, torch.float32) - exact).abs().max()
    half = (scored(tokens, settings, torch.bfloat16) - exact).abs().max()
    assert single < 5e-6 * guidance
    assert 1e3 * single < half < largest, "bfloat16 has 16 bits less"


@torch.no_grad()
@pytest.mark.parametrize("guidance, largest", [(1.0, 0.08), (16.0, 0.08 * 22)])
def test_the_sampler_against_float64(guidance, largest):
    settings = PolicySettings(guidance=guidance)
    encoder, decoder = tiny_bart()
    keys = noise_keys(0, "rollout", 0, ["a"] * 8 + ["b"] * 8, [*range(8)] * 2)
    prompts = tiny_prompts(encoder, settings, 4, 7)
    family = replace(tiny_trainer(TINY_CONFIG).family, settings=settings)
    for dtype, bound in (("float32", 5e-6 * guidance), ("bfloat16", largest)):
        drawn = sample(family.sampler_weights(decoder, dtype), prompts, keys, settings)
        exact = scored(drawn.tokens, settings, torch.float64)
        assert (drawn.log_probs - exact).abs().max() < bound, dtype


@torch.no_grad()
def test_narrow_matrices_compute_what_autocast_does_bit_for_bit():
    settings, tokens = PolicySettings(guidance=16.0), image_tokens(8)
    encoder, decoder = tiny_bart()
    with autocast(CPU, torch.bfloat16):
        prompts = tiny_prompts(encoder, settings, 4, 7)
        before = log_pi_of_tokens(decoder, tokens, prompts, settings)
        narrow(encoder, torch.bfloat16)
        narrow(decoder, torch.bfloat16, keep=("lm_head",))
        prompts = tiny_prompts(encoder, settings, 4, 7)
        after = log_pi_of_tokens(decoder, tokens, prompts, settings)
    assert torch.equal(before, after)
    assert decoder.layers[0].glu.fc0.weight.dtype == encoder.layers[0].glu.fc0.weight.dtype == torch.bfloat16
    assert decoder.lm_head.weight.dtype == torch.float32
    assert {p.dtype for p in whole_decoder(decoder).parameters()} == {torch.float32}, "what a sampler reads"


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_first_ratio_is_1_and_the_first_kl_0_in_every_precision(adapter):
    if adapter == "lora":
        pytest.importorskip("peft")
    settings = {"actor.adapter": adapter, "policy.guidance": 16.0}
    for config in (TINY_CONFIG, HALF, FROZEN):
        # A minibatch is three microbatches of different captions, in another order than they were drawn.
        config = changed(config, settings | {"update.microbatch_size": 3, "actor.trainable": "all"})
        trainer = tiny_trainer(config)
        metrics = trainer.iterate(NoWriter())
        assert metrics["kl"] == 0.0, config.update.dtype
        assert metrics["ratio_first_minibatch_max_deviation"] < 1e-3
        assert metrics["reference_changes"] == 0
        assert {p.dtype for p in trainer.actor.module.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("objective, images", [("ppo", 1), ("grpo", 2)])
def test_bfloat16_is_scored_in_the_microbatches_that_are_learned_from(objective, images):
    """What is computed together rounds together. In float32 scoring goes through the batch in order."""
    more = {"objective": objective, "rollout.samples_per_caption": images, "update.microbatch_size": 3}
    if objective == "grpo":
        more |= {"credit.advantage": "group", "credit.whiten_advantages": False}
        more |= {"grpo.leave_out_equal": False}
    for config in (TINY_CONFIG, HALF):
        trainer = tiny_trainer(changed(config, more))
        scored, columns = [], []
        family = trainer.networks.family

        class Spy:
            def __getattr__(self, name, family=family):
                return getattr(family, name)

            def score(self, policy, rows, family=family, scored=scored, **options):
                scored.append(rows.tokens)
                return family.score(policy, rows, **options)

        trainer.networks = replace(trainer.networks, family=Spy())
        score_passes = trainer.score_passes
        trainer.score_passes = lambda drawn, f=score_passes, to=columns: to.append(f(drawn)) or to[-1]
        trainer.iterate(NoWriter())
        first, second = scored[: len(scored) // 2], scored[len(scored) // 2 :]
        same = len(scored) % 2 == 0 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert same == (config is HALF)
        if same:
            (kept,) = columns
            again = family.score(trainer.networks.reference, kept).log_probs
            torch.testing.assert_close(kept.ref_log_probs, again, rtol=0, atol=0.1)  # rows are put back
            assert torch.equal(torch.cat(first).sort(0)[0], kept.tokens.sort(0)[0])


def test_the_gap_to_the_sampler_is_logged_and_corrected():
    """The weights are the ratio of the two probabilities, up to the cap."""
    config = changed(HALF, {"update.importance_cap": 1.001, "policy.guidance": 16.0})
    trainer = tiny_trainer(config)
    learned = []
    update = trainer.update
    trainer.update = lambda experience: learned.append(experience) or update(experience)
    metrics = trainer.iterate(NoWriter())
    (experience,) = learned
    gap = experience.old_log_probs - experience.sampler_log_probs
    assert (
        metrics["sampler_log_prob_gap"] == pytest.approx(float(gap.abs().mean())) and gap.abs().mean() > 1e-3
    )
    assert torch.equal(experience.token_weights, gap.exp().clamp(max=1.001))
    assert float(gap.max()) > 1e-3, "the cap is reached"


def test_a_resumed_run_finds_its_reference_though_it_is_narrow_now(tmp_path):
    from dalle_ppo.runs.checkpoints import load_checkpoint

    trainer = tiny_trainer(FROZEN)
    trainer.run_dir = tmp_path
    checkpoint = load_checkpoint(trainer.save())
    assert checkpoint.state["reference_sha256"] == tiny_trainer(TINY_CONFIG).reference_sha256
    tiny_trainer(FROZEN).load(checkpoint)


@torch.no_grad()
def test_clip_and_vqgan_in_bfloat16_are_nearly_the_same():
    world = World()
    tokens = torch.randint(0, 500, (4, 64), generator=torch.Generator().manual_seed(0))
    vqgan = world.vqgan_decoder()
    whole = vqgan.decode_uint8(tokens)
    narrow(vqgan, torch.bfloat16)
    with autocast(CPU, torch.bfloat16):
        half = vqgan.decode_uint8(tokens)
    difference = (whole.int() - half.int()).abs().float()
    assert 0 < difference.mean() < 2, "of 255 levels"
    clip, texts = load_clip(str(world.clip), None), ["a red boat", "two bombs on a green background"]
    images = whole.float() / 255
    before = clip.embed_images(images), clip.embed_texts(texts)
    clip.narrowed(torch.bfloat16)
    after = clip.embed_images(images), clip.embed_texts(texts)
    for ours, theirs in zip(after, before, strict=True):
        assert ours.dtype == torch.float32 and not torch.equal(ours, theirs)
        assert (ours * theirs).sum(-1).min() > 0.999


def test_frozen_parts_are_not_narrower_than_what_is_learned():
    with pytest.raises(ValueError, match=r"model\.frozen_dtype is bfloat16; it needs update.dtype bfloat16"):
        changed(TINY_CONFIG, {"model.frozen_dtype": "bfloat16"})
