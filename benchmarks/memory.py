"""Predicted and measured peak of memory of the update, at true size, with random weights.

    python benchmarks/memory.py                         # DALL·E mini, on the CPU: 7 GB and some minutes
    python benchmarks/memory.py --what_fits             # a table of what is predicted to fit 16 to 80 GB

Each row is a process of its own: scoring passes and one optimiser step of `run_update` on two microbatches,
with actor, reference and critic. Measured is the process's peak of resident memory; on a GPU, what torch has
allocated there. Text encoder, VQGAN and reward are left out, as is drawing.
"""

import argparse
import subprocess
import sys
from dataclasses import replace

import torch

from dalle_ppo.build.models import LoadedModel
from dalle_ppo.build.trainer import build_networks
from dalle_ppo.config.actor import ActorConfig
from dalle_ppo.config.kl import KlConfig
from dalle_ppo.config.rollout import RolloutConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.config.update import UpdateConfig
from dalle_ppo.models.dalle.bart import BartDecoder, BartEncoder, TextStates
from dalle_ppo.models.dalle.family import FrozenParts
from dalle_ppo.models.dalle.memory_plan import plan_memory
from dalle_ppo.models.dalle.presets import BART_PRESETS, VQGAN_PRESETS
from dalle_ppo.models.dalle.sampling import Prompts
from dalle_ppo.models.dalle.vqgan import VqganDecoder
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.rl.records import Experience
from dalle_ppo.training.eight_bit import state_bytes
from dalle_ppo.training.iteration_metrics import peak_memory_gb
from dalle_ppo.training.memory import MemoryForecast, gb, predict_memory
from dalle_ppo.training.objective import find_objective
from dalle_ppo.training.optim import make_learner
from dalle_ppo.training.scoring import Networks, score_passes
from dalle_ppo.training.update import Step, run_update

CASES = ("1", "2", "2 checkpointing", "2 chunks", "2 checkpointing chunks")
"""Images of a microbatch, and what is switched on."""
CHUNK = 64
"""Tokens; few enough that a chunk is small beside one image's 256."""
GIGABYTES = (16, 24, 48, 80)
MICROBATCHES = (16, 8, 4, 2, 1)
IMAGES, DRAWING_BYTES = 32, 4e9
"""Images of an iteration, and `rollout.memory_gb` in bytes, in the table of what fits."""
SPARE = 0.05
"""Share of the memory that is left for what an allocator wastes."""
CLIP_BYTES = 1_700_000_000
"""OpenAI's ViT-L/14 in float32, the largest part of most rewards."""


def settings(case: str, trainable: str, optimizer: str = "adamw", images: int | None = None) -> Config:
    """The settings of a row."""
    size, *options = case.split()
    count = int(size)
    update = UpdateConfig(
        microbatch_size=count,
        minibatch_size=2 * count if images is None else min(16, images),
        gradient_checkpointing="checkpointing" in options,
        logits_chunk=CHUNK if "chunks" in options else None,
    )
    config = Config(
        policy=PolicySettings(guidance=10.0),
        actor=ActorConfig(trainable=trainable, optimizer=optimizer, entropy_coef=0.0),
        kl=KlConfig(kl_coef=0.1),
        update=update,
        rollout=RolloutConfig(rollout_batch_size=2 * count if images is None else images),
    )
    return replace(config, critic=replace(config.critic, optimizer=optimizer))


def networks_of(model: str, config: Config, device: str, whole: bool = False) -> Networks:
    """Actor, reference and critic of a preset's size; with `whole`, encoder and VQGAN too."""
    with torch.device(device):
        decoder = BartDecoder(BART_PRESETS[model])
        parts = FrozenParts(None, None, None)
        if whole:
            vqgan = VqganDecoder(VQGAN_PRESETS["imagenet_f16_16384"])
            parts = FrozenParts(None, BartEncoder(BART_PRESETS[model]), vqgan)
        return build_networks(config, LoadedModel(decoder, decoder, parts, None, None))


def predicted(model: str, config: Config, whole: bool = False) -> MemoryForecast:
    """The forecast; with `whole`, of a run on a GPU with a CLIP, else of what `measure` does."""
    networks = networks_of(model, config, "meta", whole)
    if not whole:
        return predict_memory(config, networks, None)
    plan = plan_memory(
        networks.reference,
        networks.family.parts.vqgan,
        networks.family.settings,
        config.rollout.rollout_batch_size,
        DRAWING_BYTES,
        getattr(torch, config.rollout.dtype),
        "cuda",
    )
    return predict_memory(config, networks, plan, {"CLIP": CLIP_BYTES})


def images(networks: Networks, count: int, device: str) -> Experience:
    """Random tokens with captions as long as captions can be."""
    sizes = networks.reference.config
    shape, names = (count, sizes.num_image_tokens), ("",) * count
    with torch.device(device):
        text = torch.randn(count, sizes.num_text_tokens, sizes.width)
        mask = torch.ones(count, sizes.num_text_tokens, dtype=torch.bool)
        return Experience(
            captions=names,
            tags=names,
            caption_ids=names,
            caption_index=torch.arange(count),
            tokens=torch.randint(sizes.num_codes, shape),
            sampler_log_probs=torch.zeros(shape),
            images=torch.zeros(count, 3, 256, 256, dtype=torch.uint8),
            prompts=Prompts(TextStates(text, mask), TextStates(text[:1], mask[:1])),
        )


def measure(model: str, config: Config, device: str) -> float:
    """The peak in 10^9 bytes of scoring and one update."""
    networks = networks_of(model, config, device)
    actor, critic = make_learner(networks.actor, config.actor), make_learner(networks.critic, config.critic)
    for learner in (actor, critic):  # an optimiser has its statistics from the second step on
        for p in learner.module.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        learner.step(0.0)
    rows = images(networks, config.rollout.rollout_batch_size, device)
    rows = score_passes(networks, rows, config.update.microbatch_size, keep_reference=True)
    credit = torch.randn(rows.tokens.shape, device=device)
    rows = replace(rows, advantages=credit, returns=credit)
    step = Step(actor, critic, config.kl.kl_coef, True, torch.Generator().manual_seed(0))
    run_update(networks, rows, find_objective(config.objective), config, step)
    return peak_memory_gb(torch.device(device))


def row(model: str, case: str, trainable: str, device: str) -> str:
    """One row of the table of predicted and measured peaks."""
    forecast = predicted(model, settings(case, trainable)).peak / 1e9
    command = [sys.executable, __file__, "--model", model, "--trainable", trainable, "--device", device]
    done = subprocess.run([*command, "--measure", case], check=True, capture_output=True, text=True)
    measured = float(done.stdout.split()[-1])
    return f"| {case} | {forecast:.2f} | {measured:.2f} | {forecast / measured - 1:+.0%} |"


def what_fits(model: str, trainable: str) -> list[str]:
    """Rows of the table of what fits: the largest microbatch for each optimiser and size of memory.

    One image is traced, and activations and logits grow with their number.
    """
    cases = {case: settings(case, trainable, images=IMAGES) for case in ("1", "1 checkpointing chunks")}
    plain, low = (predicted(model, config, whole=True) for config in cases.values())
    networks = networks_of(model, cases["1"], "meta")
    learned = {"actor": networks.actor, "critic": networks.critic}
    rows = []
    for optimizer in ("adamw", "adamw_8bit"):
        states = {
            name: state_bytes([p for p in module.parameters() if p.requires_grad], optimizer)
            for name, module in learned.items()
        }
        choices = [(f"{count}", of_images(plain, count)) for count in MICROBATCHES]
        choices += [(f"{count}, low", of_images(low, count)) for count in MICROBATCHES]
        peaks = {name: replace(forecast, optimiser=states).peak for name, forecast in choices}
        cells = [
            next((name for name, peak in peaks.items() if peak < (1 - SPARE) * size * 1e9), "no")
            for size in GIGABYTES
        ]
        least = gb(min(peaks.values()))
        rows.append(f"| {model} | {trainable} | {optimizer} | {least} | {' | '.join(cells)} |")
    return rows


def of_images(forecast: MemoryForecast, count: int) -> MemoryForecast:
    """The forecast of a microbatch of one image as that of `count` images."""
    update = {name: count * size for name, size in forecast.update.items()}
    return replace(forecast, scoring=count * forecast.scoring, update=update, logits=count * forecast.logits)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("mini", "mega"), default="mini")
    parser.add_argument("--trainable", default="cross_keys_values")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="+", default=CASES, help="such as '1' or '2 checkpointing chunks'")
    parser.add_argument("--predict", metavar="CASE", help="print the prediction of a case, by part")
    parser.add_argument("--measure", metavar="CASE", help="measure one case in this process")
    parser.add_argument("--what_fits", action="store_true", help="print what is predicted to fit")
    a = parser.parse_args()
    if a.measure:
        print(measure(a.model, settings(a.measure, a.trainable), a.device))
    elif a.predict:
        print(predicted(a.model, settings(a.predict, a.trainable)))
    elif a.what_fits:
        for trainable in ("cross_keys_values", "all"):
            print("\n".join(what_fits(a.model, trainable)), flush=True)
    else:
        print("| microbatch | predicted, GB | measured, GB | difference |\n|---|---|---|---|", flush=True)
        for case in a.cases:
            print(row(a.model, case, a.trainable, a.device), flush=True)


if __name__ == "__main__":
    main()
