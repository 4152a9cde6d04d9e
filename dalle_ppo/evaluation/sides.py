"""Compares policy and reference on the same captions, from the same noise and by the same measures.

The sides of an evaluation are the reference, the policy and, on request, baselines (see `baselines`) and
earlier checkpoints.
"""

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.base.team import ALONE, Team
from dalle_ppo.captions.source import CaptionRecord, freeze_captions
from dalle_ppo.config.settings import Config
from dalle_ppo.evaluation.baselines import Baseline
from dalle_ppo.evaluation.drawing import Setup, Side, draw_baseline, draw_side
from dalle_ppo.evaluation.files import write_rows, write_thumbnails
from dalle_ppo.evaluation.judges import fallen_judges, proxy_and_judges
from dalle_ppo.evaluation.measures import Measures
from dalle_ppo.evaluation.statistics import compare, safety_bounds, summarise
from dalle_ppo.evaluation.suite_sides import evaluate_suite
from dalle_ppo.evaluation.verdict import verdict
from dalle_ppo.models.family import PolicyFamily
from dalle_ppo.runs.pictures import to_numpy
from dalle_ppo.runs.provenance import batch_identity, versions, weights_sha256

BATCHES = "batches"
"""Folder of the batches of the last evaluation, finished or not: what it drew is not drawn again."""
FILE_BATCHES = "file_batches"
"""The same for the captions of a file, so that an evaluation of these leaves the held-out ones' batches."""


@dataclass(frozen=True)
class Subject:
    """The models that an evaluation compares.

    Args:
        policy: the trained decoder.
        reference: its frozen original.
        family: how they draw and score.
        origin: where the policy comes from, as returned by `provenance.checkpoint_facts`.
        earlier: loaders of the policies of earlier checkpoints, by iteration.
        team: the processes that share the drawing; the first one writes.
        between: called by all processes before each batch; it may end the evaluation.
    """

    policy: nn.Module
    reference: nn.Module
    family: PolicyFamily
    origin: Mapping[str, object]
    earlier: Mapping[int, Callable[[], nn.Module]] = field(default_factory=dict)
    team: Team = ALONE
    between: Callable[[], None] = lambda: None


def evaluate(
    config: Config,
    run_dir: Path,
    subject: Subject,
    measures: Measures,
    captions: list[CaptionRecord],
    captions_file: str | None = None,
    baselines: Sequence[Baseline] = (),
) -> dict:
    """Draws, measures and compares all sides; writes `evaluation.json` and `evaluation/`.

    Args:
        config: the run's settings.
        run_dir: the run's folder.
        subject: policy, reference and what they share.
        measures: reward, judge, held-out measures.
        captions: distinct captions: the run's held-out ones, or those of a file.
        captions_file: name of that file, recorded so that nobody mistakes its captions for held-out ones.
        baselines: baselines to draw with the reference.

    Returns:
        The content of `evaluation.json`; empty in a process that is not the first.
    """
    folder, team = run_dir / "evaluation", subject.team
    captions_hash = team.on_first(lambda: kept_captions(captions, folder))
    facts = {
        **subject.origin,
        "reference_sha256": weights_sha256(subject.reference),
        **{f"{name}_sha256": value for name, value in measures.sha256.items()},
        "captions_sha256": captions_hash,
        "captions_file": captions_file,
        "num_captions_truncated": subject.family.num_truncated([caption.text for caption in captions]),
        "seed": config.evaluation.seed,
        "versions": versions(),
    }
    identity = batch_identity(config, facts, subject.family, measures.sha256)
    shared = (subject.reference, subject.family, measures, captions)
    batches = folder / (FILE_BATCHES if captions_file else BATCHES)
    setup = Setup(config, *shared, batches, identity, team, subject.between)
    sides, curve = draw_sides(subject, baselines, setup)
    of_suite, own = None, set()
    if measures.suite is not None:
        of_suite, own = evaluate_suite(measures.suite, subject.reference, subject.policy, setup)
    if not team.is_first:
        return {}
    result = summary(sides, config, curve, [baseline.name for baseline in baselines]) | facts
    if of_suite is not None:
        result["suite"] = of_suite
    write_result(run_dir, sides, result, subject.family)
    remove_others(setup.folder, own | {side.batches for side in sides.values()})
    return result


def kept_captions(captions: list[CaptionRecord], folder: Path) -> str:
    """Writes the captions of an evaluation into its folder, which is made; returns their SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    return freeze_captions(captions, folder / "captions.parquet")


def remove_others(folder: Path, kept: Collection[Path]) -> None:
    """Removes the batches of other weights, captions or settings than the last evaluation's."""
    for batches in folder.iterdir():
        if batches not in kept:
            shutil.rmtree(batches)


def draw_sides(
    subject: Subject, baselines: Sequence[Baseline], setup: Setup
) -> tuple[dict[str, Side], list[dict]]:
    """Draws all sides; returns them by name, with the points of the curve over training."""
    sides = {"reference": draw_side("reference", subject.reference, setup)}
    for baseline in baselines:
        sides[baseline.name] = draw_baseline(baseline, sides["reference"], setup)
    curve = [{"iteration": 0, "side": "reference"}]
    for iteration, load in subject.earlier.items():
        name = f"step_{iteration:06d}"
        curve.append({"iteration": iteration, "side": name})
        sides[name] = draw_side(name, load(), setup, sides["reference"])
    curve.append({"iteration": subject.origin["iteration"], "side": "policy"})
    sides["policy"] = draw_side("policy", subject.policy, setup, sides["reference"])
    return sides, curve


def summary(
    sides: Mapping[str, Side], config: Config, curve: list[dict], baselines: Sequence[str] = ()
) -> dict:
    """The numbers of all sides, the policy's paired differences from each, and the verdict."""
    bounds = safety_bounds(config)
    result: dict = {
        name: summarise(side.rows, side.diversity, bounds)
        for name, side in sorted(sides.items(), key=lambda item: item[0] not in ("reference", "policy"))
    }
    policy = sides["policy"]
    changes = {
        name: compare(side.rows, policy.rows, side.diversity, policy.diversity, bounds)
        for name, side in sides.items()
        if name != "policy"
    }
    result["differences"] = changes.pop("reference")
    result["against"] = changes
    result |= {"baselines": list(baselines), "curve": curve, "thresholds": asdict(bounds)}
    result["verdict"] = verdict(result)
    if config.evaluation.parsed_judges:
        rows = {name: side.rows for name, side in sides.items()}
        weights = {judge.label: judge.common.weight for judge in config.evaluation.parsed_judges}
        result["judges"] = proxy_and_judges(rows, curve, weights)
        result["verdict"]["warnings"] += fallen_judges(result["judges"])
    return result


def write_result(run_dir: Path, sides: Mapping[str, Side], result: dict, family: PolicyFamily) -> None:
    """Writes rows and thumbnails into `evaluation/`, then `evaluation.json`."""
    folder = run_dir / "evaluation"
    write_rows(folder / "images.parquet", {name: side.rows for name, side in sides.items()})

    def decode(side: str, rows: np.ndarray) -> np.ndarray:
        tokens = torch.from_numpy(sides[side].columns["tokens"][rows]).long()
        return to_numpy(family.decode(tokens))

    write_thumbnails(folder / "thumbnails.npz", sides["reference"].rows, sides["policy"].rows, decode)
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    atomic_write(run_dir / "evaluation.json", text)
