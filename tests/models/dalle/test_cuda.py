"""On a GPU: the sampler's kernels in recorded steps, and a training run. Skipped where there is none."""

from dataclasses import replace

import pytest
import torch
from tiny_models import TINY, captions, relative_difference, tiny_bart
from tiny_runs import tiny_arguments

from dalle_ppo import train
from dalle_ppo.models.dalle import sampling
from dalle_ppo.models.dalle.sampling import (
    encode_prompts,
    gather_log_probs,
    log_pi_of_tokens,
    noise_keys,
    sample,
)
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.policy.rollout import as_bfloat16, sample_in_parts
from dalle_ppo.runs.metrics import read_metrics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# As wide a head as DALL·E mini's, numbers that are no powers of two, and sequences of several blocks.
SMALL = replace(
    TINY, num_layers=3, width=192, num_heads=3, glu_width=300, image_vocab_count=1030, num_codes=1000,
    num_image_tokens=150, num_text_tokens=64,
)  # fmt: skip
SETTINGS = [
    PolicySettings(guidance=3.0),
    PolicySettings(guidance=1.0, top_k=50),
    PolicySettings(16.0, 0.7, 20),
]


def small_prompts(encoder, settings: PolicySettings):
    text = captions(4, 64, 17, config=SMALL).to(encoder.embed_tokens.weight.device)
    return encode_prompts(encoder, text[:, :64], text.new_tensor([0, 2] + [1] * 62), settings)


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS)
def test_tokens_are_those_of_the_cpu(settings):
    encoder, decoder = tiny_bart(SMALL)
    keys = noise_keys(0, "rollout", 0, ["a"] * 12, range(12))
    expected = sample(decoder, small_prompts(encoder, settings), keys, settings)
    encoder.cuda(), decoder.cuda()
    drawn = sample(decoder, small_prompts(encoder, settings), keys.cuda(), settings)
    same = (drawn.tokens.cpu() == expected.tokens).cumprod(1).bool()
    assert same[:, 0].all()
    # A tie that rounding breaks the other way changes all that follows; few images meet one.
    assert same.all(1).float().mean() >= 0.75
    gap = (drawn.log_probs.cpu() - expected.log_probs)[same].abs().max()
    assert gap < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS[:1])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=str)
def test_log_probs_are_the_teacher_forced_ones(settings, dtype, bound):
    encoder, decoder = (part.cuda() for part in tiny_bart(SMALL))
    prompts = small_prompts(encoder, settings)
    drawer = as_bfloat16(decoder) if dtype == torch.bfloat16 else decoder
    keys = noise_keys(0, "rollout", 0, ["a"] * 12, range(12)).cuda()
    drawn = sample(drawer, prompts, keys, settings)
    forced = gather_log_probs(log_pi_of_tokens(decoder, drawn.tokens, prompts, settings), drawn.tokens)
    assert (drawn.log_probs - forced).abs().mean() < bound
    assert drawn.log_probs.std() > 0.3


@torch.no_grad()
def test_without_triton_the_tokens_are_the_same(monkeypatch):
    encoder, decoder = (part.cuda() for part in tiny_bart(SMALL))
    prompts, keys = (
        small_prompts(encoder, SETTINGS[0]),
        noise_keys(0, "rollout", 0, ["a"] * 6, range(6)).cuda(),
    )
    expected = sample(decoder, prompts, keys, SETTINGS[0])
    monkeypatch.setattr(sampling, "runs_as_kernels", lambda device, decoder: False)
    drawn = sample(decoder, prompts, keys, SETTINGS[0])
    assert (drawn.tokens == expected.tokens).all(1).float().mean() >= 0.75


@torch.no_grad()
def test_draws_leave_no_memory_behind():
    encoder, decoder = (part.cuda() for part in tiny_bart(SMALL))
    prompts, keys = (
        small_prompts(encoder, SETTINGS[0]),
        noise_keys(0, "rollout", 0, ["a"] * 6, range(6)).cuda(),
    )
    allocated = []
    for _ in range(6):
        sample(decoder, prompts, keys, SETTINGS[0])
        allocated.append(torch.cuda.memory_allocated())
    assert allocated[-1] == allocated[1]


@torch.no_grad()
def test_no_image_depends_on_where_a_batch_is_cut():
    encoder, decoder = (part.cuda() for part in tiny_bart(SMALL))
    prompts = small_prompts(encoder, SETTINGS[0])
    keys = noise_keys(0, "rollout", 0, ["a"] * 12, range(12)).cuda()
    whole = sample(decoder, prompts, keys, SETTINGS[0])
    parts = sample_in_parts(decoder, prompts, keys, SETTINGS[0], 3)
    same = (whole.tokens == parts.tokens).cumprod(1).bool()
    assert same.all(1).float().mean() >= 0.75
    assert relative_difference(parts.log_probs[same], whole.log_probs[same]) < 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_trains(tmp_path, dtype):
    arguments = tiny_arguments(tmp_path / "run", num_iterations=2)
    assert train.main([*arguments, "--device", "cuda", "--rollout.dtype", dtype]) == 0
    for record in read_metrics(tmp_path / "run" / "metrics.jsonl"):
        assert record["sampler_log_prob_gap"] < (1e-4 if dtype == "float32" else 0.1)
        assert record["ratio_first_minibatch_max_deviation"] < 1e-3
