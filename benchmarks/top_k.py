"""Is a policy as safe where people draw with it as in our evaluation, trained with `policy.top_k` or without?

    python -m dalle_ppo.train --run_dir runs/all --evaluation.at_end false
    python -m dalle_ppo.train --run_dir runs/k16 --evaluation.at_end false --policy.top_k 16
    OMP_NUM_THREADS=1 python benchmarks/top_k.py runs/all runs/k16 --top_k 16

Draws held-out captions from each run's policy, and from the model it started from, in two ways: as `evaluate`
does, with the settings saved with the policy, and by the decoder module of the `min-dalle` package (0.4.11)
with its own sampler, at the policy's guidance and temperature and with --top_k codes. The package's draw,
`torch.multinomial`, gets our noise, so both ways give the same image unless the distributions differ. The
built-in world's judge counts unsafe images, and how many of the named icons safe captions get.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from dalle_ppo.build.captions import evaluation_captions
from dalle_ppo.build.measures import build_judge
from dalle_ppo.build.models import LoadedModel, load_model
from dalle_ppo.captions.source import CaptionRecord
from dalle_ppo.config.settings import Config
from dalle_ppo.models.dalle.bart import PAD_TOKEN, BartDecoder
from dalle_ppo.models.policy_settings import PolicySettings
from dalle_ppo.policy.rollout import NoiseSource, collect, occurrences
from dalle_ppo.rl.noise import gumbel_noise, noise_keys

# This helper imports the package and restores the switches that the package sets.
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from min_dalle_reference import package_decoder, package_encoder

NOISE = NoiseSource(12345, "evaluation")
IMAGES_AT_ONCE = 100
SAFE = "UNLIKELY"


@dataclass(frozen=True)
class Judged:
    """Tokens [N, T], and what the judge sees, one number per caption: the mean over its images; NaN where
    nothing is named."""

    tokens: Tensor
    unsafe: np.ndarray
    alignment: np.ndarray


class PackageSampler:
    """The package's decoder with a policy's weights, for many captions at once.

    Args:
        model: tokenizer and text encoder.
        decoder: the policy.
        settings: of the policy; `top_k` is that of the draw.
    """

    def __init__(self, model: LoadedModel, decoder: BartDecoder, settings: PolicySettings):
        config, self.tokenizer = decoder.config, model.parts.tokenizer
        self.encoder = package_encoder(model.parts.encoder, config)
        self.decoder = package_decoder(decoder, config).eval()
        # The package draws 2^14 codes, all that its models have; here the head must end where the codes do.
        head = self.decoder.lm_head
        head.weight = torch.nn.Parameter(head.weight.detach()[: config.num_codes])
        self.start = config.start_token if settings.start_token is None else settings.start_token
        self.settings = torch.tensor([settings.temperature, settings.top_k, settings.guidance])

    @torch.no_grad()
    def draw(self, texts: list[str], keys: Tensor) -> Tensor:
        """Tokens, int64 [N, T], one image for each text, with the noise of `keys`."""
        text, empty = self.tokenizer.encode(texts).tokens, self.tokenizer.unconditional()
        both = torch.cat([empty.expand_as(text), text])
        pairs = [self.encoder(torch.stack([empty, caption])) for caption in text]  # it reads two at a time
        states = torch.cat([torch.stack([pair[branch] for pair in pairs]) for branch in (0, 1)])
        num, num_tokens = len(text), len(self.decoder.token_indices)
        cache = torch.zeros(self.decoder.layer_count, 4 * num, num_tokens, self.decoder.embed_count)
        fixed = {
            "attention_mask": both.not_equal(PAD_TOKEN)[:, None, None, :],
            "encoder_state": states,
        }
        tokens, current = [], torch.full((num,), self.start)
        with patch("torch.multinomial", gumbel_maximum(keys)):
            for index in self.decoder.token_indices:
                step = {"prev_tokens": current[:, None], "token_index": index[None], "attention_state": cache}
                current, cache = self.decoder.sample_tokens(self.settings, **step, **fixed)
                tokens.append(current)
        return torch.stack(tokens, dim=1)


def gumbel_maximum(keys: Tensor) -> Callable[[Tensor, int], Tensor]:
    """Draws from the same distribution as `torch.multinomial`, with our noise; one call for each position."""
    position = count()

    def draw(weights: Tensor, num_samples: int) -> Tensor:
        noise = gumbel_noise(keys, next(position), weights.shape[1])
        return (weights.log() + noise).argmax(dim=-1, keepdim=True)

    return draw


class Bench:
    """Draws and judges the same captions for every policy."""

    def __init__(self, model: LoadedModel, num_captions: int, samples: int):
        self.model, self.samples, self.judge = model, samples, build_judge(model.world)
        self.captions: list[CaptionRecord] = evaluation_captions(Config(), num_captions)

    def as_evaluated(self, decoder: BartDecoder, settings: PolicySettings) -> Judged:
        """As `evaluate` draws."""
        family, tokens = self.model.family(settings), []
        at_once = max(1, IMAGES_AT_ONCE // self.samples)
        for start in range(0, len(self.captions), at_once):
            part = self.captions[start : start + at_once]
            tokens.append(collect(family, decoder, part, self.samples, NOISE).tokens)
        return self.judged(torch.cat(tokens))

    def by_package(self, decoder: BartDecoder, settings: PolicySettings, top_k: int) -> Judged:
        """As people draw."""
        sampler = PackageSampler(self.model, decoder, replace(settings, top_k=top_k))
        ids = [caption.id for caption in self.captions for _ in range(self.samples)]
        keys, texts = noise_keys(NOISE.seed, NOISE.stream, 0, ids, occurrences(ids)), self.texts
        starts = range(0, len(texts), IMAGES_AT_ONCE)
        parts = [slice(start, start + IMAGES_AT_ONCE) for start in starts]
        return self.judged(torch.cat([sampler.draw(texts[part], keys[part]) for part in parts]))

    @property
    def texts(self) -> list[str]:
        return [caption.text for caption in self.captions for _ in range(self.samples)]

    def judged(self, tokens: Tensor) -> Judged:
        """What the judge says about the images of the tokens."""
        columns = self.judge(self.model.parts.vqgan.decode_uint8(tokens), self.texts)
        unsafe, alignment = (
            columns[name].reshape(-1, self.samples).mean(1) for name in ("judge_unsafe", "judge_alignment")
        )
        safe = np.array([caption.tag == SAFE for caption in self.captions])
        return Judged(tokens, unsafe, np.where(safe, alignment, np.nan))


def share(values: np.ndarray) -> str:
    return f"{100 * np.nanmean(values):.1f} %"


def change(before: np.ndarray, after: np.ndarray) -> str:
    """The mean difference in points and its 95 % interval, over captions."""
    points = 100 * (after - before)
    points = points[np.isfinite(points)]
    mean, half = points.mean(), 1.96 * points.std(ddof=1) / len(points) ** 0.5
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def row(name: str, bench: Bench, decoder: BartDecoder, settings: PolicySettings, top_k: int) -> str:
    """A line of the table for one policy."""
    ours, theirs = bench.as_evaluated(decoder, settings), bench.by_package(decoder, settings, top_k)
    drawn = "all codes" if settings.top_k is None else f"top {settings.top_k}"
    others = (ours.tokens != theirs.tokens).any(dim=1).double().numpy()
    cells = [name, drawn, share(others), share(ours.unsafe), share(theirs.unsafe)]
    cells += [change(ours.unsafe, theirs.unsafe), share(ours.alignment), share(theirs.alignment)]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders in the built-in world")
    parser.add_argument("--top_k", type=int, default=16, help="codes that the package draws from")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--samples", type=int, default=4, help="images for each caption")
    args = parser.parse_args()
    models = {run.name: load_model(str(run), torch.device("cpu")) for run in args.runs}
    first = next(iter(models.values()))
    bench = Bench(first, args.captions, args.samples)
    print(
        "| policy | evaluated with | other images | unsafe, evaluated | unsafe, package | difference, points "
        "| alignment, evaluated | alignment, package |\n|---|---|---|---|---|---|---|---|"
    )
    start = first.settings or PolicySettings()
    print(row("untrained", bench, first.reference, replace(start, top_k=None), args.top_k), flush=True)
    for name, model in models.items():
        print(row(name, bench, model.decoder, model.settings, args.top_k), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
