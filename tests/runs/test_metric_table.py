"""The table of metrics: what it says of each, and that docs/metrics.md says the same."""

import re
from pathlib import Path

import pytest
from metric_names import undefined_metrics
from scripts import load_script

from dalle_ppo.evaluation.statistics import RATES, SHARES
from dalle_ppo.runs.metric_table import (
    COMPARED,
    FAMILIES,
    ITERATION_METRICS,
    METRICS,
    NATS,
    RATE,
    find_metric,
)

DOCS = Path(__file__).parents[2] / "docs"
MINUS, NBSP = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"


def test_the_docs_are_up_to_date():
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert page == load_script(DOCS / "write_metrics.py").with_tables(page), (
        "run python docs/write_metrics.py"
    )


def test_the_docs_list_every_metric_once_with_unit_and_direction():
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \| (.*) \| (up|down|) \| (\w+) \|$", page, flags=re.MULTILINE)
    names = [name for name, *_ in rows]
    assert sorted(names) == sorted([*METRICS, *FAMILIES])
    for name, definition, unit, better, of in rows:
        metric = METRICS.get(name) or FAMILIES[name]
        assert (metric.definition, metric.unit.name) == (definition, unit)
        assert (metric.better, metric.of) == (better, of)


def test_definitions_are_one_sentence_and_labels_are_unique():
    everything = [*METRICS.values(), *FAMILIES.values()]
    for metric in everything:
        assert re.fullmatch(r"[^\n|]+\.", metric.definition), metric.name
        assert metric.better in ("up", "down", "") and metric.of in ("iteration", "evaluation", "both")
    assert len({metric.label for metric in everything}) == len(everything)


def test_a_member_of_a_family_has_its_label():
    metric = find_metric("reward/my_rewards:red")
    assert (metric.name, metric.label) == ("reward/my_rewards:red", "Reward part my_rewards:red")
    assert find_metric("reward_mean").label == "Reward, mean"
    assert find_metric("made_up") is None


def test_undefined_metrics_are_found():
    assert undefined_metrics({"kl": 1, "reward/clip": 2, "made_up": 3}) == ["made_up"]


def test_what_is_resampled_as_a_rate_and_as_a_share():
    """Rates have exact bounds; the alignment of an image is a share, but not 0 or 1."""
    assert {
        "unsafe_rate",
        "share_above_lower",
        "judge_unsafe_rate",
        "judge_unrecognised_rate",
        "heldout_unsafe_rate",
    } == RATES
    assert {"judge_alignment"} == SHARES - RATES


def test_iterations_and_evaluations_have_their_own_metrics():
    assert "learning_rate" in ITERATION_METRICS and "judge_alignment" not in ITERATION_METRICS
    compared = [metric.name for metric in COMPARED]
    assert compared[0] == "unsafe_rate" and compared[-2:] == ["kl", "entropy"]
    assert {"reward_mean", "judge_alignment", "diversity"} < set(compared)
    assert not {"kl_k1", "nsfw_probability_mean", "images_drawn"} & set(compared)


@pytest.mark.parametrize(
    ("unit", "value", "options", "text"),
    [
        (RATE, 0.0142, {}, f"1.4{NBSP}%"),
        (RATE, 0.0142, {"with_unit": False}, "1.4"),
        (RATE, -0.003, {"sign": True}, f"{MINUS}0.3{NBSP}points"),
        (RATE, -0.00001, {"sign": True}, f"0.0{NBSP}points"),
        (NATS, 12.345, {}, "12.3"),
        (NATS, 12.345, {"sign": True}, "+12.3"),
        (RATE, None, {}, "\N{EN DASH}"),
        (NATS, float("nan"), {}, "\N{EN DASH}"),
    ],
)
def test_numbers_are_written_for_people(unit, value, options, text):
    assert unit.text(value, **options) == text
