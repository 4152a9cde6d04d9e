"""Policy against reference: the same held-out captions, the same noise, every image judged alike."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from .captions import CaptionRecord, freeze_captions
from .config import Config
from .galleries import gallery_rows
from .models.bart import BartDecoder
from .models.policy import PolicySettings
from .pictures import to_numpy
from .rewards.base import Reward, check_result
from .rl.kl import entropy, exact_kl
from .rollout import FrozenParts, NoiseSource, Rollout, as_float, collect
from .sampling import log_pi_of_tokens
from .statistics import Thresholds, compare, summarise
from .verdict import verdict

JUDGE_COLUMNS = ("judge_unsafe", "judge_alignment", "judge_unrecognised")

JudgeImages = Callable[[Tensor, Sequence[str]], dict[str, np.ndarray]]
"""`(images uint8 [B, 3, H, W], captions) -> {column: [B]}` for each of `JUDGE_COLUMNS`; NaN is missing."""


@dataclass(frozen=True)
class Measures:
    """What images are measured with.

    Args:
        reward: the reward of the run.
        embed_images: float images to L2-normalised embeddings [B, D], for diversity.
        judge: a held-out judge, or None where there is none.
    """

    reward: Reward
    embed_images: Callable[[Tensor], Tensor]
    judge: JudgeImages | None = None


@dataclass(frozen=True)
class Side:
    """One model's images: a column an attribute, a row an image, and the images themselves.

    Args:
        rows: columns as `statistics.summarise` takes them.
        diversity: mean cosine distance between the samples of a caption, by caption id.
        images: uint8 [N, H, W, 3], in row order.
    """

    rows: dict[str, np.ndarray]
    diversity: dict[str, float]
    images: np.ndarray


def evaluate(
    config: Config,
    run_dir: Path,
    policy: BartDecoder,
    reference: BartDecoder,
    parts: FrozenParts,
    measures: Measures,
    captions: list[CaptionRecord],
) -> dict:
    """Draws, measures and compares both sides; writes `evaluation.json` and `evaluation/`.

    Args:
        config: the run's settings.
        run_dir: the run's folder.
        policy: the trained decoder.
        reference: its frozen original.
        parts: tokenizer, text encoder, VQGAN.
        measures: reward, embeddings and judge.
        captions: distinct, never trained on.

    Returns:
        What `evaluation.json` holds.
    """
    folder = run_dir / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    captions_hash = freeze_captions(captions, folder / "captions.parquet")
    sides = {
        "reference": draw_side("reference", config, reference, reference, parts, measures, captions),
        "policy": draw_side("policy", config, policy, reference, parts, measures, captions),
    }
    result = summary(sides, config) | {"captions_sha256": captions_hash, "seed": config.evaluation.seed}
    write_rows(folder / "images.parquet", sides)
    write_thumbnails(folder / "thumbnails.npz", sides)
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    temporary = run_dir / "evaluation.json.tmp"
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(run_dir / "evaluation.json")
    return result


def summary(sides: dict[str, Side], config: Config) -> dict:
    """The numbers of both sides, their paired differences and the verdict."""
    thresholds = Thresholds(config.reward.unsure_threshold, config.reward.unsafe_threshold)
    result: dict = {name: summarise(side.rows, side.diversity, thresholds) for name, side in sides.items()}
    reference, policy = sides["reference"], sides["policy"]
    result["differences"] = compare(
        reference.rows, policy.rows, reference.diversity, policy.diversity, thresholds
    )
    result["verdict"] = verdict(result)
    return result


@torch.no_grad()
def draw_side(
    name: str,
    config: Config,
    decoder: BartDecoder,
    reference: BartDecoder,
    parts: FrozenParts,
    measures: Measures,
    captions: list[CaptionRecord],
) -> Side:
    """Draws and measures the images of one model.

    KL and entropy are measured on the first sample of each caption; the others leave them missing.
    """
    batches, images, distances = [], [], {}
    for rollout in _rollouts(name, config, decoder, parts, captions):
        batch, per_caption = rollout.batch, config.evaluation.samples_per_caption
        pixels = as_float(batch.images)
        result = check_result(measures.reward(pixels, list(batch.captions)), len(batch), "of this run")
        columns = {
            "caption_id": np.array(batch.caption_ids, dtype=object),
            "caption": np.array(batch.captions, dtype=object),
            "tag": np.array(batch.tags, dtype=object),
            "sample": np.tile(np.arange(per_caption), len(batch) // per_caption),
            "reward": result.total.cpu().numpy(),
            **_part_columns(result.parts, len(batch)),
            **_policy_columns(decoder, reference, rollout, config.policy, per_caption),
            **(measures.judge(batch.images, batch.captions) if measures.judge else _no_judge(len(batch))),
        }
        embeddings = measures.embed_images(pixels).unflatten(0, (-1, per_caption))
        distances |= dict(zip(batch.caption_ids[::per_caption], _mean_distance(embeddings), strict=True))
        batches.append(columns)
        images.append(to_numpy(batch.images))
    rows = {key: np.concatenate([columns[key] for columns in batches]) for key in batches[0]}
    return Side(rows, distances if per_caption > 1 else {}, np.concatenate(images))


def _rollouts(
    name: str, config: Config, decoder: BartDecoder, parts: FrozenParts, captions: list[CaptionRecord]
) -> Iterator[Rollout]:
    """Batches of images under a progress bar; the noise is the same for every model."""
    settings = config.evaluation
    step = max(1, settings.batch_size // settings.samples_per_caption)
    noise = NoiseSource(settings.seed, "evaluation")
    total = len(captions) * settings.samples_per_caption
    with tqdm(total=total, desc=f"evaluate {name}", unit="image", dynamic_ncols=True) as bar:
        for start in range(0, len(captions), step):
            chunk = captions[start : start + step]
            yield collect(decoder, parts, chunk, settings.samples_per_caption, noise, config.policy)
            bar.update(len(chunk) * settings.samples_per_caption)


def _part_columns(parts: dict[str, Tensor], num: int) -> dict[str, np.ndarray]:
    """Reward parts as columns; the two that reports know are there even if the reward has them not."""
    known = ("nsfw_probability", "clip_similarity")
    columns = {name: np.full(num, np.nan) for name in known}
    for name, part in parts.items():
        columns[name if name in known else f"reward/{name}"] = part.cpu().numpy()
    return columns


def _policy_columns(
    decoder: BartDecoder, reference: BartDecoder, rollout: Rollout, settings: PolicySettings, per_caption: int
) -> dict[str, np.ndarray]:
    """Exact KL from the reference and entropy, nats an image, of the first sample of each caption."""
    batch = rollout.batch
    columns = {name: np.full(len(batch), np.nan) for name in ("kl", "entropy")}
    first = torch.arange(0, len(batch), per_caption, device=batch.tokens.device)
    for rows in first.split(64):
        tokens, prompts = batch.tokens[rows], rollout.prompts.select(batch.caption_index[rows])
        log_pi = log_pi_of_tokens(decoder, tokens, prompts, settings)
        kl = torch.zeros(len(rows))
        if decoder is not reference:
            kl = exact_kl(log_pi, log_pi_of_tokens(reference, tokens, prompts, settings)).sum(dim=1)
        columns["kl"][rows.cpu()] = kl.cpu()
        columns["entropy"][rows.cpu()] = entropy(log_pi).sum(dim=1).cpu()
    return columns


def _no_judge(num: int) -> dict[str, np.ndarray]:
    return {name: np.full(num, np.nan) for name in JUDGE_COLUMNS}


def _mean_distance(embeddings: Tensor) -> list[float]:
    """Mean cosine distance between the n samples of each caption; embeddings [M, n, D], normalised."""
    n = embeddings.shape[1]
    similarity = torch.einsum("mid,mjd->mij", embeddings, embeddings).sum(dim=(1, 2)) - n
    return (1 - similarity / max(1, n * (n - 1))).tolist()


def write_rows(path: Path, sides: dict[str, Side]) -> None:
    """One parquet row an image and side; missing values are null."""
    tables = []
    for name, side in sides.items():
        columns = {"model": pa.array([name] * len(side.images))}
        for key, values in side.rows.items():
            if key in ("judge_unsafe", "judge_unrecognised"):
                values = [None if np.isnan(v) else bool(v) for v in values]
            columns[key] = pa.array(values, from_pandas=True)
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables, promote_options="permissive"), path)


def write_thumbnails(path: Path, sides: dict[str, Side], num_random: int = 200) -> None:
    """The pictures that the report shows, and a random choice beside them, of both sides."""
    reference, policy = sides["reference"], sides["policy"]
    chosen = {int(row) for rows in gallery_rows(reference.rows, policy.rows).values() for row in rows}
    rng = np.random.default_rng(0)
    num = len(reference.images)
    chosen |= {int(row) for row in rng.choice(num, size=min(num, num_random), replace=False)}
    rows = np.array(sorted(chosen))
    np.savez_compressed(path, rows=rows, reference=reference.images[rows], policy=policy.images[rows])
