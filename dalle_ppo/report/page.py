"""report.html: one self-contained page about a run, made from whatever files of the run exist."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dalle_ppo.base.atomic import atomic_write
from dalle_ppo.captions.tags import SAFE_TAG, TAGS, UNSAFE_TAG, named
from dalle_ppo.config.report import ReportConfig
from dalle_ppo.evaluation.galleries import TAG_GALLERY, gallery_rows, tag_gallery
from dalle_ppo.evaluation.statistics import SafetyBounds
from dalle_ppo.evaluation.verdict import verdict
from dalle_ppo.report import plots
from dalle_ppo.report.curve import checkpoint_cards
from dalle_ppo.report.files import RunFiles, read_run
from dalle_ppo.report.judges import judge_section
from dalle_ppo.report.pictures import Picture, data_uri, picture
from dalle_ppo.report.suite import suite_table
from dalle_ppo.report.tables import (
    baseline_table,
    image_table,
    metric_tables,
    pairing_sentence,
    result_tiles,
    transitions,
)
from dalle_ppo.report.veils import PROBABILITY, called_unsafe, checked_by
from dalle_ppo.runs.metric_table import METRICS, find_metric
from dalle_ppo.runs.provenance import versions

HIDDEN = "caption hidden"
REPORT_FILE = "report.html"
GALLERY_TITLES = {
    "improved": ("Most improved", "The largest gains in reward."),
    "worsened": ("Most worsened", "The largest losses in reward: look here first for what went wrong."),
    "random": ("Random", "Chosen at random from all captions: what to expect."),
}
CURVES = {
    "unsafe_rate": True,
    "reward_mean": False,
    "kl": True,
    "clip_similarity": False,
    "entropy": False,
    "explained_variance": False,
}
"""Metrics shown as training curves, and whether their axis starts at 0."""
SHOWN = {*CURVES, "iteration", "images", "seconds"}
REWARD_PART = "reward/"
HASHED = ("policy", "reference", "captions", "clip", "detector", "judge", "heldout_clip", "heldout_detector")


def write_report(run_dir: Path, settings: ReportConfig | None = None) -> Path:
    """Write `run_dir`/report.html from the run's files and return its path.

    Args:
        run_dir: a run's folder; config.yaml, metrics.jsonl, evaluation.json, evaluation/images.parquet and
            evaluation/thumbnails.npz are used if they exist and can be read.
        settings: what to show; None takes it from config.yaml.

    Raises:
        ValueError: the folder does not exist.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"report: {run_dir} is not a folder; name the folder of a run")
    files = read_run(run_dir, lambda name: name in SHOWN or name.startswith(REWARD_PART))
    if settings is not None:
        files.config = {**files.config, "report": {"hide_captions": settings.hide_captions}}
    page = render(report_context(run_dir.resolve().name, files))
    atomic_write(run_dir / REPORT_FILE, page)
    return run_dir / REPORT_FILE


def render(context: Mapping[str, object]) -> str:
    """The page for a context made by `report_context`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(context)


def report_context(name: str, files: RunFiles) -> dict:
    """Everything the template shows."""
    bounds = _safety_bounds(files)
    veils = [called_unsafe(rows, bounds.upper) for rows in (files.reference, files.policy)]
    judged = files.evaluation.get("verdict")
    if not isinstance(judged, Mapping):
        judged = verdict(files.evaluation) if files.evaluation.get("differences") else None
    return {
        "name": name,
        "verdict": judged
        and {"sentence": judged.get("sentence", ""), "warnings": judged.get("warnings") or []},
        "tiles": result_tiles(files.evaluation),
        "hero": _hero(files, veils),
        "tables": metric_tables(files.evaluation),
        "pairing": pairing_sentence(files.evaluation),
        "captions": _captions(files.evaluation),
        "baselines": baseline_table(files.evaluation),
        "checkpoints": checkpoint_cards(files.evaluation),
        "image_table": image_table(files.evaluation),
        "judges": judge_section(files.evaluation),
        "suite": suite_table(files.evaluation),
        "rates": _rate_chart(files.evaluation),
        "curves": _curves(files.metrics),
        "kl_reward": _kl_reward(files.metrics),
        "distributions": _distributions(files, bounds),
        "transitions": transitions(files.reference, files.policy, bounds),
        "galleries": _galleries(files, veils),
        "thresholds": bounds,
        "tags": TAGS,
        "detector": not files.reference or PROBABILITY in files.reference,
        "checked_by": checked_by(files.reference),
        "facts": _facts(files),
        "config_text": files.config_text,
        "problems": files.problems,
    }


def _captions(evaluation: Mapping) -> str:
    """What the page calls the captions: only the run's own are known to be held out from training."""
    file = evaluation.get("captions_file")
    return f"captions of {file}" if file else "held-out captions"


def _safety_bounds(files: RunFiles) -> SafetyBounds:
    reward = files.config.get("reward")
    reward = reward if isinstance(reward, Mapping) else {}
    terms = reward.get("terms") or []
    nsfw = next((t for t in terms if isinstance(t, Mapping) and t.get("name") == "nsfw"), {})
    stored = files.evaluation.get("thresholds") or {
        "lower": nsfw.get("unsure_threshold"),
        "upper": nsfw.get("unsafe_threshold"),
    }
    return SafetyBounds(**{name: value for name, value in stored.items() if value is not None})


def _curves(metrics: Mapping[str, np.ndarray]) -> list[dict]:
    if "iteration" not in metrics:
        return []
    steps, found = metrics["iteration"], []
    for name in (*CURVES, *sorted(name for name in metrics if name.startswith(REWARD_PART))):
        metric, values = find_metric(name), metrics.get(name, np.array([]))
        if not np.isfinite(values).any():
            continue
        tick = plots.tick_of(metric.unit)
        chart = plots.curve(steps, values, f"{metric.label} over training", tick, CURVES.get(name, False))
        if chart is not None:
            _, points = plots.thin(steps, values)
            last = plots.running_mean(points)[np.isfinite(points)][-1]
            shown = f"{100 * last:.1f}\N{NO-BREAK SPACE}%" if metric.unit.percent else f"{last:.3g}"
            shown = shown.replace("-", "\N{MINUS SIGN}")
            found.append({"title": metric.label, "unit": metric.chart_note, "last": shown, "svg": chart})
    return found


def _kl_reward(metrics: Mapping[str, np.ndarray]):
    if "kl" not in metrics or "reward_mean" not in metrics:
        return None
    title = "Reward against KL over training"
    return plots.trajectory(metrics["kl"], metrics["reward_mean"], title, f"KL, {METRICS['kl'].unit.name}")


def _rate_chart(evaluation: Mapping):
    reference, policy = evaluation.get("reference") or {}, evaluation.get("policy") or {}
    entries = []
    for group in policy:
        before, after = reference.get(group) or {}, policy[group] or {}
        entries.append(
            {
                "label": "all" if group == "overall" else group,
                "reference": before.get("unsafe_rate"),
                "policy": after.get("unsafe_rate"),
                "reference_interval": (before.get("intervals") or {}).get("unsafe_rate"),
                "policy_interval": (after.get("intervals") or {}).get("unsafe_rate"),
            }
        )
    return plots.dumbbells(entries, "Unsafe rate before and after, by tag", "unsafe rate, with 95 % bounds")


def _distributions(files: RunFiles, bounds: SafetyBounds) -> list[dict]:
    if not files.reference:
        return []
    before, after = files.reference, files.policy
    tags = np.asarray([named(tag) for tag in before["tag"]])
    charts = [
        (
            "Reward",
            "Share of images.",
            plots.histogram(before["reward"], after["reward"], "Reward before and after", "reward"),
        ),
        (
            "NSFW probability",
            "Share of images on a logarithmic scale; the lines are the two thresholds of the reward.",
            _probabilities(files, bounds) if PROBABILITY in before else None,
        ),
        (
            "Pairs",
            "One dot per caption and noise: x is before, y is after; above the line is better. Jittered.",
            plots.paired_scatter(
                before["reward"], after["reward"], tags, "Reward, pair by pair", "reward before"
            ),
        ),
    ]
    return [{"title": title, "note": note, "svg": svg} for title, note, svg in charts if svg is not None]


def _probabilities(files: RunFiles, bounds: SafetyBounds):
    marks = (
        (bounds.lower, f"{bounds.lower:g}", "warn"),
        (bounds.upper, f"{bounds.upper:g}", "bad"),
    )
    return plots.histogram(
        files.reference[PROBABILITY],
        files.policy[PROBABILITY],
        "NSFW probability before and after",
        "probability given by the detector",
        edges=np.linspace(0.0, 1.0, 41),
        marks=marks,
        log_y=True,
    )


def _galleries(files: RunFiles, veils: list[np.ndarray]) -> list[dict]:
    galleries = []
    for name, rows in _gallery_rows(files).items():
        tag = name.removeprefix(TAG_GALLERY)
        title, note = GALLERY_TITLES.get(name, (tag, f"Chosen at random from the captions tagged {tag}."))
        pairs = [_pair(files, int(row), veils) for row in rows]
        galleries.append({"id": name.lower(), "title": title, "note": note, "pairs": pairs})
    return [gallery for gallery in galleries if gallery["pairs"]]


def _hero(files: RunFiles, veils: list[np.ndarray]) -> list[dict]:
    """A few random pairs for the top of the page, half of them with the tag for unsafe content."""
    chosen = _gallery_rows(files)
    tagged = [tag_gallery(tag) for tag in (UNSAFE_TAG, SAFE_TAG)]
    groups = [chosen[name][:4] for name in tagged if name in chosen] or [chosen.get("random", [])[:8]]
    return [_pair(files, int(row), veils) for group in groups for row in group]


def _gallery_rows(files: RunFiles) -> dict[str, np.ndarray]:
    if not files.pictures:
        return {}
    chosen = gallery_rows(files.reference, files.policy)
    return {name: np.array([row for row in rows if row in files.pictures]) for name, rows in chosen.items()}


def _pair(files: RunFiles, row: int, veils: list[np.ndarray]) -> dict:
    sides: list[Picture] = []
    for rows, image, veiled in zip((files.reference, files.policy), files.pictures[row], veils, strict=True):
        probability = rows[PROBABILITY][row] if PROBABILITY in rows else None
        sides.append(picture(data_uri(image), rows["reward"][row], probability, bool(veiled[row])))
    columns = files.reference
    caption = str(columns["caption"][row]) if "caption" in columns else str(columns["caption_id"][row])
    tag = named(columns["tag"][row] or None)
    return {
        "caption": HIDDEN if tag == UNSAFE_TAG and _hides_captions(files) else caption,
        "tag": tag,
        "before": sides[0],
        "after": sides[1],
    }


def _hides_captions(files: RunFiles) -> bool:
    """Whether `report.hide_captions` is set; a section that cannot be read hides, too."""
    section = files.config.get("report", {})
    return bool(section.get("hide_captions")) if isinstance(section, Mapping) else True


def _facts(files: RunFiles) -> list[tuple[str, str]]:
    overall = (files.evaluation.get("policy") or {}).get("overall") or {}
    evaluation = files.evaluation
    iterations, images = (files.metrics.get(name, np.array([])) for name in ("iteration", "images"))
    facts = [("seed", files.config.get("seed")), ("iterations", len(iterations) or None)]
    if len(iterations):
        seconds = files.metrics.get("seconds", np.array([]))
        drawn = int(images[-1]) if len(images) and np.isfinite(images[-1]) else None
        facts.append(("training images", drawn))
        facts.append(
            ("training time", f"{np.nansum(seconds) / 60:.1f} min" if np.isfinite(seconds).any() else None)
        )
    facts.append(("evaluated images per side", overall.get("num_images")))
    facts.append((_captions(files.evaluation), overall.get("num_captions")))
    facts.append(
        ("captions cut to the text encoder's length", evaluation.get("num_captions_truncated") or None)
    )
    facts.append(("bounds on rates", overall.get("rate_interval_method")))
    facts.append(("evaluation seed", evaluation.get("seed")))
    facts.append(("evaluated checkpoint", evaluation.get("iteration")))
    hashes = {name: evaluation.get(f"{name}_sha256") for name in HASHED}
    if files.config_text:
        hashes["config"] = hashlib.sha256(files.config_text.encode()).hexdigest()
    facts += [(f"{name.replace('_', ' ')} sha256", value and value[:16]) for name, value in hashes.items()]
    facts += (evaluation.get("versions") or versions()).items()
    return [
        (name, f"{value:,}" if isinstance(value, int) and "seed" not in name else str(value))
        for name, value in facts
        if value is not None
    ]
