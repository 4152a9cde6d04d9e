"""Our sampler against the `min-dalle` package's own modules, on the same random weights in one process.

    python benchmarks/sampler.py                           # DALL·E mini, float32, guidance on, 2 threads
    python benchmarks/sampler.py --width 64 --layers 2     # a minute, to see that it works

For 16 images and for 1: seconds with and without pixels, the ratio, peak memory on top of the weights, and
the share of the rate that bare matrix products of the same shapes and weights reach on this machine, done in
the fastest of four ways. Then the same for teacher-forced log-probs, and where a step's time goes. CPU only.

Both sides share one copy of the weights; several images are drawn from a packed copy, which no column counts
(`generate` packs in place). The package attends over all 256 positions at every step, so all steps take
equally long, and `--package_steps` can time fewer of them.
"""

import argparse
import ctypes
import gc
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from dalle_ppo.models.dalle.bart import STEP_PRODUCTS, BartDecoder, BartEncoder, frozen_decoder, init_bart
from dalle_ppo.models.dalle.linear import FEW_ROWS, PackedLinear, onednn_product
from dalle_ppo.models.dalle.presets import BART_PRESETS, VQGAN_PRESETS, BartConfig
from dalle_ppo.models.dalle.sampling import encode_prompts, log_pi_of_tokens, sample
from dalle_ppo.models.dalle.vqgan import VqganDecoder
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.noise import noise_keys

# This helper imports the package and restores the switches that the package sets.
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from min_dalle_reference import PackageLoop, package, package_decoder, package_encoder
from step_parts import step_seconds, step_table

SETTINGS = PolicySettings(guidance=16.0, top_k=256, start_token=16383)
CAPTION_LENGTH = 14
PIXELS_AT_ONCE = 4


@dataclass(frozen=True)
class Models:
    """Our networks and the package's, sharing the same memory."""

    config: BartConfig
    encoder: BartEncoder
    decoder: BartDecoder
    vqgan: VqganDecoder
    package_encoder: torch.nn.Module
    package_decoder: torch.nn.Module
    package_vqgan: torch.nn.Module


@dataclass(frozen=True)
class Measured:
    """Seconds of a call, and by how many bytes it raised peak resident memory."""

    seconds: float
    peak: int


def build_models(config: BartConfig) -> Models:
    """Random weights of the given size; the VQGAN is always the published one."""
    torch.manual_seed(0)
    encoder, decoder = BartEncoder(config), BartDecoder(config)
    init_bart(encoder, std=0.03)
    init_bart(decoder, std=0.03)
    vqgan = VqganDecoder(VQGAN_PRESETS["imagenet_f16_16384"])
    with torch.device("meta"):
        package_vqgan = package().detokenizer.VQGanDetokenizer()
    pairs = (
        (encoder, package_encoder(encoder, config)),
        (decoder, package_decoder(decoder, config)),
        (vqgan, package_vqgan),
    )
    for ours, theirs in pairs:
        theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    networks = [ours.eval().requires_grad_(False) for ours, _ in pairs]
    networks += [theirs.eval().requires_grad_(False) for _, theirs in pairs]
    return Models(config, *networks)


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def measure(call: Callable[[], object]) -> Measured:
    """Runs it once. Linux only: the peak is the kernel's own high-water mark, reset first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmRSS"), time.perf_counter()
    call()
    return Measured(time.perf_counter() - start, resident("VmHWM") - before)


def text_tokens(config: BartConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """A caption of `CAPTION_LENGTH` tokens and the unconditional one, each int64 [64]."""
    caption = torch.ones(config.num_text_tokens, dtype=torch.long)
    caption[:CAPTION_LENGTH] = torch.arange(CAPTION_LENGTH) + 10
    caption[0], caption[CAPTION_LENGTH - 1] = 0, 2
    unconditional = torch.ones_like(caption)
    unconditional[:2] = torch.tensor([0, 2])
    return caption, unconditional


def drawing_decoder(models: Models, num_images: int) -> BartDecoder:
    """Our decoder as `python -m dalle_ppo.generate` uses it: packed if several images are drawn."""
    decoder = frozen_decoder(models.config, models.decoder.state_dict())
    if 2 * num_images > FEW_ROWS:
        decoder.pack(2 * num_images)
    return decoder


@torch.no_grad()
def draw_tokens(models: Models, num_images: int, decoder: BartDecoder | None = None) -> torch.Tensor:
    """Our tokens [N, 256] for one caption."""
    caption, unconditional = text_tokens(models.config)
    prompts = encode_prompts(models.encoder, caption[None], unconditional, SETTINGS)
    keys = noise_keys(0, "generate", 0, ["benchmark"] * num_images, range(num_images))
    return sample(decoder or models.decoder, prompts, keys, SETTINGS).tokens


def package_tokens(models: Models, num_images: int, num_steps: int) -> torch.Tensor:
    """The package's tokens [N, 256]; only the first `num_steps` are drawn."""
    caption, unconditional = text_tokens(models.config)
    loop = PackageLoop(models.package_encoder, models.package_decoder, caption, unconditional, num_images)
    settings = torch.tensor([SETTINGS.temperature, SETTINGS.top_k, SETTINGS.guidance])
    tokens = torch.zeros(num_images, models.config.num_image_tokens, dtype=torch.long)
    current = torch.full((num_images,), SETTINGS.start_token)
    for position in range(num_steps):
        current = tokens[:, position] = loop.sample(current, position, settings)
    return tokens


@torch.no_grad()
def package_pixels(models: Models, tokens: torch.Tensor) -> None:
    models.package_vqgan(False, tokens)


Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
PACKED = "oneDNN, packed"
# Which is faster depends on the shapes and the machine.
PRODUCTS: dict[str, Product] = {
    "MKL, rows by weights": F.linear,
    "MKL, weights by columns": lambda rows, weight: weight @ rows.T,
    "oneDNN": onednn_product,
    PACKED: onednn_product,
}


def laid_out(weight: torch.Tensor, rows: int, way: str) -> torch.Tensor:
    """A weight in the layout that one of the `PRODUCTS` takes."""
    return PackedLinear(weight, rows).packed if way == PACKED else weight


def step_matmuls(models: Models, rows: int, way: str) -> Callable[[], object]:
    """Only the matrix products of one sampler step: every weight once, at the sampler's shapes."""
    product = PRODUCTS[way]
    weights = [
        laid_out(layer.get_submodule(name).weight, rows, way)
        for layer in models.decoder.layers
        for name in STEP_PRODUCTS
    ]
    inputs = {width: torch.randn(rows, width) for width in {w.shape[1] for w in weights}}
    head = laid_out(models.decoder.lm_head.weight, rows // 2, way)
    hidden = torch.randn(rows // 2, models.config.width)

    def run() -> None:
        for weight in weights:
            product(inputs[weight.shape[1]], weight)
        product(hidden, head)

    return run


@torch.no_grad()
def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """The best of several calls, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def flops_of(call: Callable[[], object]) -> int:
    product = {torch.ops.mkldnn._linear_pointwise: lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0]}
    with FlopCounterMode(display=False, custom_mapping=product) as counter:
        call()
    return counter.get_total_flops()


def compare(models: Models, num_images: int, package_steps: int) -> tuple[list[str], float]:
    """Two rows of the table, and the seconds that our tokens took.

    Our seconds include packing. Our bytes do not: the packed weights would replace the originals, which the
    package still needs here.
    """
    num_steps = models.config.num_image_tokens
    start = time.perf_counter()
    decoder = drawing_decoder(models, num_images)
    packing = time.perf_counter() - start
    drawn = measure(lambda: draw_tokens(models, num_images, decoder))
    ours = replace(drawn, seconds=drawn.seconds + packing)
    theirs = measure(lambda: package_tokens(models, num_images, package_steps))
    their_seconds = theirs.seconds * num_steps / package_steps
    tokens = torch.randint(0, models.config.num_codes, (num_images, num_steps))
    our_pixels = measure(lambda: models.vqgan.decode_uint8(tokens, PIXELS_AT_ONCE))
    their_pixels = measure(lambda: package_pixels(models, tokens))
    rows = []
    for name, a, b, peak_a, peak_b in (
        ("tokens", ours.seconds, their_seconds, ours.peak, theirs.peak),
        (
            "with pixels",
            ours.seconds + our_pixels.seconds,
            their_seconds + their_pixels.seconds,
            max(ours.peak, our_pixels.peak),
            max(theirs.peak, their_pixels.peak),
        ),
    ):
        rows.append(
            f"| {num_images} | {name} | {a / num_images:.2f} | {b / num_images:.2f} | {b / a:.1f} | "
            f"{peak_a / 1e9:.2f} | {peak_b / 1e9:.2f} |"
        )
    return rows, ours.seconds


@torch.no_grad()
def flops_to_draw(models: Models) -> tuple[int, int]:
    """FLOPs of `draw_tokens`: once for the encoder and cross-attention keys and values, then per image."""

    def shared() -> None:
        caption, unconditional = text_tokens(models.config)
        prompts = encode_prompts(models.encoder, caption[None], unconditional, SETTINGS)
        for text in (prompts.text, prompts.unconditional):
            models.decoder.cross_states(text)

    once = flops_of(shared)  # a single image's rows may be doubled for speed, those of two images are not
    return once, (flops_of(lambda: draw_tokens(models, 2)) - once) // 2


def share_of_limit(models: Models, num_images: int, seconds: float, flops: int) -> str:
    """The sampler's FLOP rate compared with that of its bare matrix products."""
    rates = []
    for way in PRODUCTS:
        products = step_matmuls(models, 2 * num_images, way)
        rates.append(flops_of(products) / seconds_of(products, 5))
    return share_row(f"sampler, {num_images} images", flops / num_images, flops / seconds, rates)


def share_row(name: str, image_flops: float, rate: float, bare_rates: list[float]) -> str:
    numbers = [f"{flops / 1e9:.0f}" for flops in (image_flops, rate, *bare_rates)]
    return f"| {name} | {' | '.join(numbers)} | {rate / max(bare_rates):.0%} |"


@torch.no_grad()
def share_of_teacher_forcing(models: Models, num_images: int) -> str:
    """Log-probs of whole images compared with a product of their largest matrix shape."""
    caption, unconditional = text_tokens(models.config)
    prompts = encode_prompts(models.encoder, caption[None], unconditional, SETTINGS)
    tokens = torch.randint(0, models.config.num_codes, (num_images, models.config.num_image_tokens))
    settings = replace(SETTINGS, top_k=None)

    def score() -> None:
        log_pi_of_tokens(models.decoder, tokens, prompts, settings)

    weight = models.decoder.layers[0].glu.fc0.weight
    inputs = torch.randn(tokens.numel(), models.config.width)
    bare_flops = 2 * inputs.numel() * weight.shape[0]
    rates = [
        bare_flops / seconds_of(partial(product, inputs, laid_out(weight, len(inputs), way)), 5)
        for way, product in PRODUCTS.items()
    ]
    flops = flops_of(score)
    return share_row(
        f"log-probs, {num_images} images", flops / num_images, flops / seconds_of(score, 2), rates
    )


def parse_arguments() -> tuple[argparse.Namespace, BartConfig]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[16, 1], help="square numbers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--package_steps", type=int, default=256, help="how many of the 256 steps to time")
    parser.add_argument("--width", type=int, help="a smaller model, to try this script")
    parser.add_argument("--layers", type=int, help="fewer layers, to try this script")
    args = parser.parse_args()
    if any(round(count**0.5) ** 2 != count for count in args.images):
        parser.error("--images must be square numbers: the package draws square grids")
    config = BART_PRESETS["mini"]
    if args.width:
        heads, glu_width = max(1, args.width // 64), args.width * 8 // 3
        config = replace(config, width=args.width, num_heads=heads, glu_width=glu_width)
    return args, replace(config, num_layers=args.layers or config.num_layers)


def main() -> None:
    args, config = parse_arguments()
    torch.set_num_threads(args.threads)
    models = build_models(config)
    once, each = flops_to_draw(models)  # also warms up
    print(f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}")
    print(f"width {config.width}, {config.num_layers} layers, {resident('VmRSS') / 1e9:.1f} GB resident\n")
    print("| images | what | ours, s per image | package, s per image | ratio | ours, GB | package, GB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    seconds = {}
    for num_images in args.images:
        rows, seconds[num_images] = compare(models, num_images, args.package_steps)
        print("\n".join(rows), flush=True)
    columns = (
        "",
        "GFLOP per image",
        "ours, GFLOP/s",
        *(f"bare products, {name}" for name in PRODUCTS),
        "share",
    )
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for num_images in args.images:
        flops = once + num_images * each
        print(share_of_limit(models, num_images, seconds[num_images], flops), flush=True)
    print(share_of_teacher_forcing(models, max(args.images)), flush=True)
    steps = {}
    for n in args.images:
        draw = partial(draw_tokens, models, n, drawing_decoder(models, n))
        steps[n] = step_seconds(draw, config.num_image_tokens)
    print(f"\n{step_table(steps)}")


if __name__ == "__main__":
    main()
