"""The kernels of the sampler's step on a GPU: by Triton's interpreter where there is none, and compiled."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny_models import TINY, captions, image_tokens, randomise, relative_difference, tiny_bart, tiny_prompts

from dalle_ppo.models.dalle import sampling, triton_works
from dalle_ppo.models.dalle.bart import CrossStates
from dalle_ppo.models.dalle.sampling import _Drawing, draw_replayed, sample
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.noise import gumbel_noise, noise_keys

pytest.importorskip("triton")
from dalle_ppo.models.dalle import kernels
from dalle_ppo.models.dalle.gpu_step import GpuStep

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SETTINGS = [PolicySettings(guidance=3.0), PolicySettings(1.0, 0.8, 5), PolicySettings(16.0, 1.3, 3)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def close(ours: torch.Tensor, expected: torch.Tensor) -> bool:
    return relative_difference(ours.double(), expected) < 2e-6


def attention(queries, keys, values) -> torch.Tensor:
    """In float64: queries [H, E], keys and values [H, T, E] to [H E]."""
    parts = (part.double() for part in (queries[:, None], keys, values))
    return F.scaled_dot_product_attention(*parts).flatten()


@pytest.mark.parametrize("width", [5, 8])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 39])
def test_a_new_token_reads_the_cache_and_itself_and_is_written_to_it(length, width):
    keys, values, projected = (
        random(3, 2, 40, width),
        random(3, 2, 40, width, seed=1),
        random(3, 6 * width, seed=2),
    )
    before = keys.clone(), values.clone()
    # What is not written yet may be anything.
    keys[:, :, length:], values[:, :, length:] = torch.nan, torch.nan
    read = kernels.attend_cache(projected, keys, values, int32(0, 1, 2), int32(*[length] * 3))
    queries, new_keys, new_values = (part.unflatten(1, (2, width)) for part in projected.chunk(3, dim=1))
    for row in range(3):
        ours = [torch.cat([old[row, :, :length], new[row, :, None]], dim=1)
                for old, new in zip(before, (new_keys, new_values), strict=True)]  # fmt: skip
        assert close(read[row], attention(queries[row], *ours))
        for cache, expected in zip((keys, values), ours, strict=True):
            assert torch.equal(cache[row, :, : length + 1], expected)
            assert cache[row, :, length + 1 :].isnan().all()


def test_rows_read_their_own_caption_up_to_its_end():
    keys, values, queries = random(3, 2, 21, 8), random(3, 2, 21, 8, seed=1), random(2, 16, seed=2)
    lengths, owners = [2, 21, 17], [0, 0, 2, 1]
    for caption, length in enumerate(lengths):
        keys[caption, :, length:], values[caption, :, length:] = torch.nan, torch.nan
    read = kernels.attend_text(queries, keys, values, int32(*owners), int32(*lengths))
    assert read.shape == (4, 16)
    for row, owner in enumerate(owners):
        there = slice(lengths[owner])
        expected = attention(queries[row % 2].view(2, 8), keys[owner, :, there], values[owner, :, there])
        assert close(read[row], expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=str)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("has_x", [False, True])
def test_add_and_norm(has_x, has_norm, dtype, bound):
    width = 24
    first, second = (randomise(torch.nn.LayerNorm(width), seed).to(DEVICE, dtype) for seed in (1, 2))
    x, h = random(2, width) + 3, random(4, width, seed=1).to(dtype)
    ours, normed = kernels.add_and_norm(x if has_x else None, h, first if has_norm else None, second)
    expected = first.double()(h.double()) if has_norm else h.double()
    expected = expected + x.double().repeat(2, 1) if has_x else expected
    assert ours.dtype == torch.float32 and normed.dtype == dtype
    assert close(ours, expected)
    assert relative_difference(normed.double(), second.double()(expected)) < bound


@torch.no_grad()
def test_gated_norm():
    norm = randomise(torch.nn.LayerNorm(23)).to(DEVICE)
    parts = random(3, 46)
    gate, up = parts.double().chunk(2, dim=1)
    ours = kernels.gated_norm(parts, norm)
    assert close(ours, norm.double()(F.gelu(gate) * up))


def drawn(logits: torch.Tensor, keys: torch.Tensor, position: int, temperature: float, top_k: int | None):
    tokens = torch.full((len(logits), 4), -1, device=DEVICE)
    log_probs = torch.full((len(logits), 4), torch.nan, device=DEVICE)
    current, place = torch.zeros_like(tokens[:, 0]), torch.tensor([position], device=DEVICE)
    kernels.draw_codes(logits, keys, place, temperature, top_k, current, tokens, log_probs)
    assert torch.equal(current, tokens[:, position])
    assert (tokens >= 0).sum() == len(logits) == log_probs.isfinite().sum()
    return current, log_probs[:, position]


@pytest.mark.parametrize("top_k", [None, 1, 7, 299, 300, 999])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_draw_is_the_gumbel_maximum_of_the_top_codes(temperature, top_k):
    logits = 2 * random(40, 300)
    keys = noise_keys(0, "rollout", 0, ["a"] * 40, range(40)).to(DEVICE)
    log_pi = logits.double() / temperature
    if top_k is not None and top_k < 300:
        log_pi[log_pi < log_pi.sort(dim=1, descending=True).values[:, top_k - 1 : top_k]] = -torch.inf
    log_pi = log_pi.log_softmax(dim=1)
    for position in (0, 3):
        codes, log_probs = drawn(logits, keys, position, temperature, top_k)
        assert torch.equal(codes, (log_pi + gumbel_noise(keys, position, 300)).argmax(dim=1))
        assert (log_probs - log_pi.gather(1, codes[:, None])[:, 0]).abs().max() < 1e-5
    assert len(codes.unique()) > 20


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_codes_that_tie_with_the_kth_are_kept(sign):
    """In each row the best, three that tie, and worse ones; of logits of either sign."""
    logits = torch.tensor([3.0, 1.0, 2.0, 1.5, 2.0, 2.0, -1.0]).repeat(90, 1).to(DEVICE) + (
        0 if sign > 0 else -9
    )
    keys = noise_keys(0, "rollout", 0, ["a"] * 90, range(90)).to(DEVICE)
    codes, log_probs = drawn(logits, keys, 1, 1.0, 2)
    assert codes.unique().tolist() == [0, 2, 4, 5]
    expected = torch.tensor([3.0, 2.0, 2.0, 2.0]).log_softmax(0)
    assert (log_probs[codes == 4] - expected[1]).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("num_heads, guided", [(2, True), (4, False)])
def test_a_step_equals_teacher_forcing(num_heads, guided):
    config = replace(TINY, num_heads=num_heads, num_image_tokens=5)
    encoder, decoder = (part.to(DEVICE) for part in tiny_bart(config))
    tokens = image_tokens(4, config).to(DEVICE)
    texts = [encoder(captions(*lengths).to(DEVICE)) for lengths in [(4, 10), (2,)][: 1 + guided]]
    branches = [decoder.cross_states(text) for text in texts]
    exact = [
        decoder.double()(tokens, decoder.cross_states(replace(t, states=t.states.double()))) for t in texts
    ]
    decoder.float()
    step, current = GpuStep(decoder, branches, 4), torch.full((4,), TINY.start_token, device=DEVICE)
    for t in range(tokens.shape[1]):
        hidden = step(current, torch.tensor([t], device=DEVICE))
        assert hidden.shape == (1 + guided, 4, TINY.width)
        for ours, expected in zip(hidden, exact, strict=True):
            assert relative_difference(ours.double(), expected[:, t]) < 1e-5, f"position {t}"
        current = tokens[:, t]


def on_device(cross: CrossStates) -> CrossStates:
    pairs = tuple((keys.to(DEVICE), values.to(DEVICE)) for keys, values in cross.keys_values)
    return CrossStates(pairs, cross.mask.to(DEVICE))


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS)
def test_replayed_steps_draw_the_tokens_of_a_cpu(settings):
    """All of what a GPU does but the recording: a step stands in for it, run once more for each token."""
    config = replace(TINY, num_image_tokens=5)
    encoder, decoder = tiny_bart(config)
    prompts = tiny_prompts(encoder, settings, 4, 10, config=config)
    keys = noise_keys(0, "rollout", 0, "abcd", [0] * 4)
    expected = sample(decoder, prompts, keys, settings)
    branches = [on_device(decoder.cross_states(prompts.text))]
    if settings.guided:
        branches.append(on_device(decoder.cross_states(prompts.unconditional)))
    step = GpuStep(decoder.to(DEVICE), branches, 4)
    drawing = _Drawing(decoder, step, keys.to(DEVICE), settings, as_kernels=True)
    buffers, recorded = (drawing.tokens, drawing.log_probs, drawing.current, drawing.position), []

    def record(step):
        recorded.append(step)
        return step

    draw_replayed(drawing, record)
    assert torch.equal(drawing.tokens.cpu(), expected.tokens)
    assert relative_difference(drawing.log_probs.cpu(), expected.log_probs) <= 1e-5
    assert len(recorded) == 1
    # A graph writes where it was recorded: no buffer may be replaced.
    after = drawing.tokens, drawing.log_probs, drawing.current, drawing.position
    assert all(before is now for before, now in zip(buffers, after, strict=True))


COMPILE = """
    import sys
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from dalle_ppo.models.dalle import kernels

    def compiled(kernel, num_warps, constants, **types):
        names = kernel.arg_names
        signature = {name: types.get(name, "constexpr") for name in names}
        values = {(names.index(name),): value for name, value in constants.items()}
        target = GPUTarget("cuda", int(sys.argv[1]), 32)
        triton.compile(ASTSource(kernel, signature, values), target=target, options={"num_warps": num_warps})

    x = "*" + sys.argv[2]
    for is_cache in (True, False):
        compiled(kernels._attend, 2 if is_cache else 1,
            dict(WIDTH=64, PADDED=64, BLOCK=16, IS_CACHE=is_cache, STAGES=3 if is_cache else 1),
            queries=x, query_stride="i32", num_query_rows="i32", keys=x, values=x, num_places="i32",
            owners="*i32", lengths="*i32", new_keys=x, new_values=x, new_stride="i32", out=x,
            scale="fp32", num_heads="i32")
        compiled(kernels._add_and_norm, 8, dict(HAS_X=is_cache, HAS_NORM=is_cache, PADDED=1024),
            x="*fp32", num_x_rows="i32", h=x, weight=x, bias=x, next_weight=x, next_bias=x, x_out="*fp32",
            normed_out=x, width="i32")
        compiled(kernels._draw, 16, dict(TOP_K=256 if is_cache else 0, PADDED=16384), logits="*fp32",
            keys="*i32", position="*i64", temperature="fp32", current="*i64", tokens="*i64",
            log_probs="*fp32", num_tokens="i32", num_codes="i32")
    compiled(kernels._gate, 8, dict(PADDED=4096), parts=x, w=x, b=x, out=x, width="i32")
"""


@pytest.mark.parametrize("capability, dtype", [(75, "bf16"), (80, "fp16"), (90, "fp32")])
def test_every_kernel_compiles_for_a_gpu(capability, dtype, monkeypatch, tmp_path):
    """The interpreter is more lenient than the compiler, which needs no GPU."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    command = [sys.executable, "-c", textwrap.dedent(COMPILE), str(capability), dtype]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("works", [True, False])
def test_without_a_compiler_or_headers_the_sampler_says_so_once_and_goes_on(works, monkeypatch, recwarn):
    """Triton compiles a C file when it is first used, and what fails then has many types."""

    class Driver:
        asked = 0

        @property
        def active(self):
            self.asked += 1
            if not works:
                raise subprocess.CalledProcessError(1, ["gcc"])
            return SimpleNamespace(get_current_target=lambda: "a GPU")

    driver = Driver()
    monkeypatch.setitem(sys.modules, "triton.runtime", SimpleNamespace(driver=driver))
    monkeypatch.setattr(triton_works.importlib.util, "find_spec", lambda name: name)
    triton_works.triton_works.cache_clear()
    decoder = tiny_bart()[1]
    try:
        found = [sampling.runs_as_kernels(torch.device("cuda"), decoder) for _ in range(2)]
        assert not sampling.runs_as_kernels(torch.device("cpu"), decoder)
    finally:
        triton_works.triton_works.cache_clear()
    assert found == [works] * 2 and driver.asked == 1
    assert [("CalledProcessError" in str(w.message)) for w in recwarn] == [True] * (not works)
