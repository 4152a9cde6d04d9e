"""Our sampler compared with the `min-dalle` package's own modules on a GPU, on the same random weights.

    python benchmarks/sampler_gpu.py                           # DALL·E Mega, bfloat16, guidance on
    python benchmarks/sampler_gpu.py --profile                 # also shows a step's time by kernel

The package draws as in its own loop, under autocast to bfloat16, but without that loop's `empty_cache` call
at each token, so the ratio is a little lower than what a user sees. The limit of a draw is the larger of two
times: reading each weight and the filled part of the caches once per step at the rate of a large copy, and
doing the operations of the products at the rate of a large product. Both rates are measured here.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from dalle_ppo.models.dalle.bart import STEP_PRODUCTS, BartDecoder, BartEncoder, init_bart
from dalle_ppo.models.dalle.family import half_decoder
from dalle_ppo.models.dalle.presets import BART_PRESETS, VQGAN_PRESETS, BartConfig
from dalle_ppo.models.dalle.sampling import Prompts, encode_prompts, log_pi_of_tokens, sample
from dalle_ppo.models.dalle.vqgan import VqganDecoder
from dalle_ppo.rl.noise import noise_keys

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from min_dalle_reference import PackageLoop, package, package_decoder, package_encoder
from sampler import SETTINGS, text_tokens

GRID = 9


def seconds_of(call: Callable[[], object], repeats: int = 3) -> float:
    """The best of several calls, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def copy_rate() -> float:
    """Bytes read and written per second by a large copy."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), 10)


def product_rate() -> float:
    """Operations per second of a large product in bfloat16."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / seconds_of(lambda: a @ b, 10)


def text_tokens_on_gpu(config: BartConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The caption and the unconditional one of the CPU benchmark, each int64 [64]."""
    caption, unconditional = text_tokens(config)
    return caption.cuda(), unconditional.cuda()


def draw_limit(decoder: BartDecoder, num_images: int) -> tuple[float, float]:
    """For all tokens of `num_images`: bytes that must move, and operations of the products."""
    config, rows = decoder.config, 2 * num_images
    weights = [layer.get_submodule(name).weight for layer in decoder.layers for name in STEP_PRODUCTS]
    head = decoder.lm_head.weight[: config.num_codes]
    token_bytes = 2 * config.width * decoder.embed_positions.weight.itemsize  # key and value, in one layer
    read = config.num_image_tokens * (config.num_image_tokens + 1) // 2
    cache_rows = num_images + (config.num_layers - 1) * rows
    step_bytes = sum(w.nbytes for w in weights) + head.nbytes
    step_flops = 2 * (rows * sum(w.numel() for w in weights) + num_images * head.numel())
    steps = config.num_image_tokens
    return steps * step_bytes + read * cache_rows * token_bytes, steps * step_flops


@torch.no_grad()
def draw(decoder: BartDecoder, prompts: Prompts, num_images: int) -> torch.Tensor:
    keys = noise_keys(0, "generate", 0, ["benchmark"] * num_images, range(num_images))
    return sample(decoder, prompts, keys.to(decoder.lm_head.weight.device), SETTINGS).tokens


@torch.no_grad()
def encode_and_draw(encoder: BartEncoder, decoder: BartDecoder, num_images: int) -> torch.Tensor:
    """Tokens of one caption from its text on, as the package's loop draws them."""
    caption, unconditional = text_tokens_on_gpu(decoder.config)
    return draw(decoder, encode_prompts(encoder, caption[None], unconditional, SETTINGS), num_images)


@torch.no_grad()
def package_seconds(encoder, decoder, config: BartConfig, num_images: int, num_steps: int) -> float:
    """Seconds of the package's loop, scaled up from `num_steps` tokens: all its steps take equally long."""
    settings = torch.tensor([SETTINGS.temperature, SETTINGS.top_k, SETTINGS.guidance], device="cuda")
    with torch.autocast("cuda", torch.bfloat16):

        def begin() -> PackageLoop:
            return PackageLoop(encoder, decoder, *text_tokens_on_gpu(config), num_images)

        def steps(loop: PackageLoop) -> None:
            current = torch.full((num_images,), SETTINGS.start_token, device="cuda")
            for position in range(num_steps):
                current = loop.sample(current, position, settings)

        scale = config.num_image_tokens / num_steps
        return seconds_of(begin, 2) + scale * seconds_of(partial(steps, begin()), 2)


def compare_grid(encoder: BartEncoder, decoder: BartDecoder, steps: int) -> None:
    """Times a 3 x 3 grid, tokens and pixels, against the package; both encode the caption too."""
    config = decoder.config
    vqgan = VqganDecoder(VQGAN_PRESETS["imagenet_f16_16384"]).cuda().eval()
    theirs = package_encoder(encoder, config), package_decoder(decoder, config)
    with torch.device("cuda"):
        their_vqgan = package().detokenizer.VQGanDetokenizer().eval()
    their_vqgan.load_state_dict(vqgan.state_dict())
    ours = seconds_of(lambda: encode_and_draw(encoder, decoder, GRID))
    their_tokens = package_seconds(*theirs, config, GRID, steps)
    tokens = torch.randint(0, config.num_codes, (GRID, config.num_image_tokens), device="cuda")
    pixels = seconds_of(lambda: vqgan.decode_uint8(tokens))
    with torch.no_grad():
        their_pixels = seconds_of(lambda: their_vqgan(False, tokens))
    print("\n| a 3 x 3 grid | ours, s | package, s | ratio |\n|---|---|---|---|")
    for name, a, b in (
        ("tokens", ours, their_tokens),
        ("pixels", pixels, their_pixels),
        ("both", ours + pixels, their_tokens + their_pixels),
    ):
        print(f"| {name} | {a:.3f} | {b:.3f} | {b / a:.1f} |", flush=True)


@torch.no_grad()
def log_prob_share(decoder: BartDecoder, prompts: Prompts, num_images: int, product: float) -> str:
    """Teacher-forced log-probs of whole images, compared with a large product."""
    config = decoder.config
    tokens = torch.randint(0, config.num_codes, (num_images, config.num_image_tokens))
    tokens = tokens.to(decoder.lm_head.weight.device)
    # Without the caption's keys and values, which are computed once.
    per_row = sum(layer.get_submodule(n).weight.numel() for layer in decoder.layers for n in STEP_PRODUCTS)
    head = decoder.lm_head.weight[: config.num_codes].numel()
    flops = 2 * tokens.numel() * (2 * per_row + head)
    settings = replace(SETTINGS, top_k=None)  # as in training
    seconds = seconds_of(lambda: log_pi_of_tokens(decoder, tokens, prompts, settings))
    return (
        f"| {num_images} | {seconds:.3f} | {flops / seconds / 1e12:.0f} | {flops / seconds / product:.0%} |"
    )


def profile(call: Callable[[], object]) -> None:
    call()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        call()
        torch.cuda.synchronize()
    table = profiler.key_averages().table(
        sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=60
    )
    keep = [line for line in table.splitlines() if line.strip() and "---" not in line]
    print("\n".join(line[:60] + line[-80:] for line in keep))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mega", choices=["mini", "mega"])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 9, 64, 256])
    parser.add_argument("--package_steps", type=int, default=64, help="how many of the 256 steps to time")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    config = BART_PRESETS[args.model]
    torch.manual_seed(0)
    with torch.device("cuda"):
        encoder, decoder = BartEncoder(config), BartDecoder(config)
    init_bart(encoder, std=0.03)
    init_bart(decoder, std=0.03)
    encoder.eval().requires_grad_(False).bfloat16()
    decoder = half_decoder(decoder)
    copy, product = copy_rate(), product_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, DALL·E {args.model}")
    print(f"copy {copy / 1e12:.2f} TB/s, bfloat16 product {product / 1e12:.0f} TFLOP/s\n")
    caption, unconditional = text_tokens_on_gpu(config)
    prompts = encode_prompts(encoder, caption[None], unconditional, SETTINGS)
    columns = (
        "images",
        "s",
        "images/s",
        "bytes, s",
        "products, s",
        "share of the limit",
        "GB on top of the weights",
    )
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for num_images in args.images:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = seconds_of(partial(draw, decoder, prompts, num_images))
        moved, flops = draw_limit(decoder, num_images)
        times = moved / copy, flops / product
        peak = (torch.cuda.max_memory_allocated() - before) / 1e9
        numbers = f"{seconds:.3f} | {num_images / seconds:.1f} | {times[0]:.3f} | {times[1]:.3f}"
        print(f"| {num_images} | {numbers} | {max(times) / seconds:.0%} | {peak:.1f} |", flush=True)
        if args.profile:
            profile(partial(draw, decoder, prompts, num_images))
    print("\n| log-probs, images | s | TFLOP/s | share |\n|---|---|---|---|")
    print(log_prob_share(decoder, prompts, 16, product), flush=True)
    compare_grid(encoder, decoder, args.package_steps)


if __name__ == "__main__":
    main()
