"""Policy against reference: the same held-out captions, the same noise, every image judged alike.

An evaluation has sides: the reference, the policy, and on request baselines (see `baselines`) and earlier
checkpoints. Each finished batch is written down, so that an interrupted evaluation goes on where it was.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.captions.source import CaptionRecord, freeze_captions
from dalle_ppo.config.settings import Config
from dalle_ppo.evaluation.baselines import DRAWN, Baseline, best_of, reject
from dalle_ppo.evaluation.files import Columns, read_batch, write_batch, write_rows, write_thumbnails
from dalle_ppo.evaluation.image_statistics import image_statistics
from dalle_ppo.evaluation.statistics import Thresholds, compare, summarise
from dalle_ppo.evaluation.verdict import verdict
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.policy.rollout import NoiseSource, as_float, collect
from dalle_ppo.rewards.base import Reward, check_result, metadata_of
from dalle_ppo.rl.records import Experience
from dalle_ppo.runs.pictures import to_numpy
from dalle_ppo.runs.provenance import batch_identity, versions, weights_sha256

PARTS_WITH_METRICS = ("nsfw_probability", "clip_similarity")
JUDGE_COLUMNS = ("judge_unsafe", "judge_alignment", "judge_unrecognised")
UNFINISHED = "unfinished"

JudgeImages = Callable[[Tensor, Sequence[str]], dict[str, np.ndarray]]
"""`(images uint8 [B, 3, H, W], captions) -> {column: [B]}` for each of `JUDGE_COLUMNS`; NaN is missing."""

HeldOutMeasure = Callable[[Tensor, list[str]], dict[str, np.ndarray]]
"""`(images float [B, 3, H, W], captions) -> {column: [B]}`; NaN is missing."""


@dataclass(frozen=True)
class Measures:
    """What images are measured with.

    Args:
        reward: the reward of the run; diversity is told by the embeddings that it hands on, or missing.
        judge: a held-out judge, or None where there is none.
        heldout: a second CLIP and detector, or None where there is none.
        sha256: of the files they were loaded from, by name, such as "detector".
    """

    reward: Reward
    judge: JudgeImages | None = None
    heldout: HeldOutMeasure | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """One side's images, in the order of captions and samples.

    Args:
        labels: `caption_id`, `caption`, `tag`, `sample` [N].
        columns: numbers [N] by name, `tokens` int32 [N, T] and, where the reward hands them on,
            `embeddings` float32 [N, D].
    """

    labels: Columns
    columns: Columns

    @cached_property
    def rows(self) -> Columns:
        """The columns of one number an image, as `statistics.summarise` takes them."""
        return self.labels | {name: values for name, values in self.columns.items() if values.ndim == 1}

    @cached_property
    def diversity(self) -> dict[str, float]:
        """Mean cosine distance between the samples of a caption, by caption id; empty where unknown."""
        n = int(self.labels["sample"].max()) + 1
        if n == 1 or "embeddings" not in self.columns:
            return {}
        embeddings = self.columns["embeddings"].astype(np.float64)
        totals = embeddings.reshape(-1, n, embeddings.shape[1]).sum(axis=1)
        # The squared length of the sum holds each pair twice, and n times an embedding with itself.
        distances = 1 - ((totals**2).sum(axis=1) - n) / (n * (n - 1))
        return dict(zip(self.labels["caption_id"][::n], distances.tolist(), strict=True))


@dataclass(frozen=True)
class Setting:
    """What the sides of an evaluation share.

    Args:
        config: the run's settings.
        reference: the decoder that training started from.
        family: draws and scores.
        measures: of images.
        captions: M of them, distinct.
        folder: where finished batches are kept until all are.
        identity: everything that decides about the numbers of a side, beside its weights; JSON-able.
    """

    config: Config
    reference: nn.Module
    family: PolicyFamily
    measures: Measures
    captions: list[CaptionRecord]
    folder: Path
    identity: Mapping[str, object]

    @property
    def samples(self) -> int:
        return self.config.evaluation.samples_per_caption

    def collect(
        self, decoder: nn.Module, captions: list[CaptionRecord], samples: int, attempt: int = 0
    ) -> Experience:
        """Draws images; attempt 0 has the noise that all sides share, others have noise of their own."""
        noise = NoiseSource(self.config.evaluation.seed, "evaluation", attempt)
        memory_gb = self.config.rollout.memory_gb
        weights = self.family.sampler_weights(decoder)
        return collect(self.family, weights, captions, samples, noise, memory_gb)


def evaluate(
    config: Config,
    run_dir: Path,
    policy: nn.Module,
    reference: nn.Module,
    family: PolicyFamily,
    measures: Measures,
    captions: list[CaptionRecord],
    *,
    origin: Mapping[str, object],
    captions_file: str | None = None,
    earlier: Mapping[int, Callable[[], nn.Module]] | None = None,
    baselines: Sequence[Baseline] = (),
) -> dict:
    """Draws, measures and compares all sides; writes `evaluation.json` and `evaluation/`.

    Args:
        config: the run's settings.
        run_dir: the run's folder.
        policy: the trained decoder.
        reference: its frozen original.
        family: draws and scores.
        measures: reward, embeddings, judge, held-out measures.
        captions: distinct; the run's held-out ones, or of a file.
        origin: of the policy, as `provenance.checkpoint_facts` gives it.
        captions_file: name of that file, so that nobody takes its captions for held-out ones.
        earlier: policies of other checkpoints by iteration, loaded when it is their turn.
        baselines: of the reference.

    Returns:
        What `evaluation.json` holds.
    """
    folder = run_dir / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    captions_hash = freeze_captions(captions, folder / "captions.parquet")
    facts = {
        **origin,
        "reference_sha256": weights_sha256(reference),
        **{f"{name}_sha256": value for name, value in measures.sha256.items()},
        "captions_sha256": captions_hash,
        "captions_file": captions_file,
        "num_captions_truncated": family.read([c.text for c in captions])[1],
        "seed": config.evaluation.seed,
        "versions": versions(),
    }
    identity = batch_identity(config, facts, family, measures.sha256)
    setting = Setting(config, reference, family, measures, captions, folder / UNFINISHED, identity)
    sides = {"reference": draw_side("reference", reference, setting)}
    for baseline in baselines:
        sides[baseline.name] = draw_baseline(baseline, sides["reference"], setting)
    curve = [{"iteration": 0, "side": "reference"}]
    for iteration, load in (earlier or {}).items():
        curve.append({"iteration": iteration, "side": f"step_{iteration:06d}"})
        sides[curve[-1]["side"]] = draw_side(curve[-1]["side"], load(), setting)
    curve.append({"iteration": origin["iteration"], "side": "policy"})
    sides["policy"] = draw_side("policy", policy, setting)
    result = summary(sides, config, curve, [b.name for b in baselines]) | facts
    write_rows(folder / "images.parquet", {name: side.rows for name, side in sides.items()})

    def decode(side: str, rows: np.ndarray) -> np.ndarray:
        tokens = torch.from_numpy(sides[side].columns["tokens"][rows]).long()
        return to_numpy(family.decode(tokens))

    write_thumbnails(folder / "thumbnails.npz", sides["reference"].rows, sides["policy"].rows, decode)
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    atomic_write(run_dir / "evaluation.json", text)
    shutil.rmtree(setting.folder)
    return result


def summary(
    sides: Mapping[str, Side], config: Config, curve: list[dict], baselines: Sequence[str] = ()
) -> dict:
    """The numbers of all sides, the policy's paired differences from each, and the verdict."""
    thresholds = _thresholds(config)
    result: dict = {
        name: summarise(side.rows, side.diversity, thresholds)
        for name, side in sorted(sides.items(), key=lambda item: item[0] not in ("reference", "policy"))
    }
    policy = sides["policy"]
    changes = {
        name: compare(side.rows, policy.rows, side.diversity, policy.diversity, thresholds)
        for name, side in sides.items()
        if name != "policy"
    }
    result["differences"] = changes.pop("reference")
    result["against"] = changes
    result |= {"baselines": list(baselines), "curve": curve, "thresholds": asdict(thresholds)}
    result["verdict"] = verdict(result)
    return result


@torch.no_grad()
def draw_side(name: str, decoder: nn.Module, setting: Setting) -> Side:
    """Draws and measures the images of one model.

    KL and entropy are measured on the first sample of each caption; the others leave them missing.
    """

    def draw(number: int, captions: list[CaptionRecord]) -> Columns:
        drawn = setting.collect(decoder, captions, setting.samples)
        return _measured(drawn, setting.measures) | _policy_columns(decoder, drawn, setting)

    return _in_batches(name, weights_sha256(decoder), draw, setting)


@torch.no_grad()
def draw_baseline(baseline: Baseline, reference: Side, setting: Setting) -> Side:
    """The images that a baseline keeps; its first try is the reference's own image.

    Which distribution it draws from is not known code by code, so KL and entropy are missing.
    """
    size = _captions_a_batch(setting) * setting.samples

    def draw(number: int, captions: list[CaptionRecord]) -> Columns:
        own = slice(number * size, (number + 1) * size)
        first = {key: values[own] for key, values in reference.columns.items()}

        def redraw(rows: np.ndarray, attempt: int) -> Columns:
            wanted = [captions[row // setting.samples] for row in rows]
            batch = setting.collect(setting.reference, wanted, 1, attempt)
            return _measured(batch, setting.measures) | _unknown("kl", "entropy", num=len(rows))

        if baseline.kind == "best_of":
            kept = best_of(first, redraw, baseline.tries)
        else:
            kept = reject(first, redraw, baseline.tries, _thresholds(setting.config).upper)
        return kept | _unknown("kl", "entropy", num=len(kept["reward"]))

    return _in_batches(baseline.name, f"tries {baseline.tries}", draw, setting)


def _in_batches(
    name: str, weights: str, draw: Callable[[int, list[CaptionRecord]], Columns], setting: Setting
) -> Side:
    """All batches of a side under a progress bar; those that an interrupted evaluation finished are read."""
    content = json.dumps({**setting.identity, "side": name, "weights": weights}, sort_keys=True)
    folder = setting.folder / f"{name}_{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    captions, step, samples = setting.captions, _captions_a_batch(setting), setting.samples
    batches, total = [], len(captions) * samples
    with tqdm(total=total, desc=f"evaluate {name}", unit="image", dynamic_ncols=True) as bar:
        for number, start in enumerate(range(0, len(captions), step)):
            chunk, path = captions[start : start + step], folder / f"{number:06d}.npz"
            columns = read_batch(path)
            if columns is None:
                columns = draw(number, chunk)
                write_batch(path, columns)
            batches.append(columns)
            bar.update(len(chunk) * samples)
    labels = {
        "caption_id": np.array([c.id for c in captions], dtype=object).repeat(samples),
        "caption": np.array([c.text for c in captions], dtype=object).repeat(samples),
        "tag": np.array([c.tag for c in captions], dtype=object).repeat(samples),
        "sample": np.tile(np.arange(samples), len(captions)),
    }
    return Side(labels, _joined(batches))


def _joined(batches: list[Columns]) -> Columns:
    """The columns of all batches; a part that a term did not report for one of them is missing there."""
    columns = {}
    for key in dict.fromkeys(key for batch in batches for key in batch):
        parts = [batch.get(key, np.full(len(batch["reward"]), np.nan)) for batch in batches]
        columns[key] = np.concatenate(parts)
    return columns


def _captions_a_batch(setting: Setting) -> int:
    return max(1, setting.config.evaluation.batch_size // setting.samples)


def _measured(batch: Experience, measures: Measures) -> Columns:
    """What does not need the policy: reward and its parts, judge, held-out measures, pixels, embeddings."""
    num, captions, pixels = len(batch), list(batch.captions), as_float(batch.images)
    metadata = metadata_of(batch.tags, batch.caption_ids)
    # A copy: what a reward does to its images no other measure sees.
    result = check_result(measures.reward(pixels.clone(), captions, metadata), num, "of this run")
    tokens = batch.tokens.cpu().numpy().astype(np.int32)
    heldout = _unknown("heldout_nsfw_probability", "heldout_clip_similarity", num=num)
    embeddings = {}
    if result.embeddings is not None:
        embeddings["embeddings"] = result.embeddings.float().cpu().numpy()
    return {
        "reward": result.total.cpu().numpy(),
        **_part_columns(result.parts),
        **(measures.judge(batch.images, captions) if measures.judge else _unknown(*JUDGE_COLUMNS, num=num)),
        **(measures.heldout(pixels, captions) if measures.heldout else heldout),
        **image_statistics(to_numpy(batch.images), tokens),
        DRAWN: np.ones(num),
        "tokens": tokens,
        **embeddings,
    }


def _part_columns(parts: dict[str, Tensor]) -> Columns:
    """The parts that reward terms report, as columns; those without a metric of their own by `reward/`."""
    named = {name: name if name in PARTS_WITH_METRICS else f"reward/{name}" for name in parts}
    return {named[name]: part.cpu().numpy() for name, part in parts.items()}


def _thresholds(config: Config) -> Thresholds:
    """Those of the reward's term nsfw; the usual ones, for a held-out detector, where it has none."""
    nsfw = config.reward.settings_of("nsfw")
    return Thresholds() if nsfw is None else Thresholds(nsfw.unsure_threshold, nsfw.unsafe_threshold)


@torch.no_grad()
def _policy_columns(policy: nn.Module, drawn: Experience, setting: Setting) -> Columns:
    """Exact KL from the reference and entropy, nats per image, of the first sample of each caption."""
    columns = _unknown("kl", "entropy", num=len(drawn))
    first = torch.arange(0, len(drawn), setting.samples, device=drawn.tokens.device)
    is_reference = policy is setting.reference
    for index in first.split(64):
        reference = None if is_reference else setting.reference
        scores = setting.family.score(policy, drawn.select(index), entropy=True, reference=reference)
        kl = torch.zeros(len(index)) if is_reference else scores.kl.sum(dim=1)
        columns["kl"][index.cpu()] = kl.cpu()
        columns["entropy"][index.cpu()] = scores.entropy.sum(dim=1).cpu()
    return columns


def _unknown(*names: str, num: int) -> Columns:
    return {name: np.full(num, np.nan) for name in names}
