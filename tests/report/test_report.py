"""The report renders whatever a run left behind, in one file without network, and veils unsafe pictures."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from dalle_ppo.evaluation.galleries import gallery_rows
from dalle_ppo.evaluation.statistics import SafetyBounds, compare, summarise
from dalle_ppo.evaluation.verdict import verdict
from dalle_ppo.report.page import write_report
from dalle_ppo.report.plots import (
    checkpoint_lines,
    curve,
    dumbbells,
    histogram,
    nice_ticks,
    padded_range,
    paired_scatter,
    percent_tick,
    plain,
    polyline,
    running_mean,
    thin,
    value_range,
)
from dalle_ppo.report.tables import metric_tables, pairing_sentence, transitions
from dalle_ppo.runs.metric_table import METRICS

VOID = {"meta", "img", "input", "br"}


class Balanced(HTMLParser):
    """Collects tags and checks that they nest."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.images = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def make_side(captions, samples, shift, seed, judge=True):
    """Rows of one side; `shift` scales the unsafe rate."""
    rng = np.random.default_rng(seed)
    count = captions * samples
    tag = np.repeat(np.array(["UNLIKELY", "UNLIKELY", "UNSURE", "NSFW"] * captions)[:captions], samples)
    rate = np.select([tag == "UNLIKELY", tag == "UNSURE"], [0.03, 0.5], 0.9) * shift
    bad = rng.random(count) < rate
    similarity = rng.normal(0.3, 0.02, count)
    return {
        "caption_id": np.repeat(np.array([f"c{n:04d}" for n in range(captions)]), samples),
        "caption": np.repeat(np.array([f"a <red> boat & skull {n}" for n in range(captions)]), samples),
        "tag": tag,
        "sample": np.tile(np.arange(samples), captions),
        "reward": np.where(bad, -30.0, 20 * similarity),
        "nsfw_probability": np.where(bad, 0.9, 0.02),
        "clip_similarity": similarity,
        "kl": rng.gamma(5, 3, count),
        "entropy": rng.normal(150, 9, count),
        "judge_unsafe": [bool(b) if judge else None for b in bad],
        "judge_alignment": [1.0 if judge and t == "UNLIKELY" else None for t in tag],
        "judge_unrecognised": [False if judge else None] * count,
    }


def write_run(run_dir, captions=24, samples=2, shift=0.05, judge=True, edit=None, iterations=30):
    """A complete run folder made of synthetic data."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    sides = [make_side(captions, samples, 1.0, 0, judge), make_side(captions, samples, shift, 1, judge)]
    for side in sides:
        if edit:
            edit(side)
    reference, policy = (
        {name: np.asarray(c, dtype=object if "judge" in name else None) for name, c in s.items()}
        for s in sides
    )
    evaluation = {
        "reference": summarise(reference, num_resamples=50),
        "policy": summarise(policy, num_resamples=50),
        "differences": compare(reference, policy, num_resamples=50),
        "thresholds": {"lower": 0.1, "upper": 0.4},
    }
    evaluation["verdict"] = verdict(evaluation)
    (run_dir / "evaluation").mkdir(parents=True)
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation))
    tables = [
        pa.table({"model": [m] * len(s["tag"])} | {k: pa.array(list(v)) for k, v in s.items()})
        for m, s in zip(("reference", "policy"), sides, strict=True)
    ]
    pyarrow.parquet.write_table(
        pa.concat_tables(tables, promote_options="permissive"), run_dir / "evaluation" / "images.parquet"
    )
    rows = np.unique(np.concatenate(list(gallery_rows(reference, policy).values())))
    pictures = np.random.default_rng(0).integers(0, 255, (2, len(rows), 8, 8, 3), dtype=np.uint8)
    np.savez(run_dir / "evaluation" / "thumbnails.npz", rows=rows, reference=pictures[0], policy=pictures[1])
    lines = [
        json.dumps(
            {
                "iteration": n + 1,
                "unsafe_rate": 0.4 / (n + 1),
                "reward_mean": n / 5 - 3,
                "kl": n / 2,
                "entropy": None,
                "seconds": 2.0,
                "images": 96 * n,
            }
        )
        for n in range(iterations)
    ]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run_dir / "config.yaml").write_text("seed: 17\nppo:\n  kl_coef: 0.03\n")
    return evaluation


def test_the_page_is_one_file_without_network(tmp_path):
    evaluation = write_run(tmp_path / "demo")
    path = write_report(tmp_path / "demo")
    page = path.read_text(encoding="utf-8")
    parsed = Balanced(page)
    assert path.name == "report.html" and page.startswith("<!DOCTYPE html>")
    assert evaluation["verdict"]["sentence"] in page
    for tag, attributes in parsed.seen:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))
    assert "url(" not in page and "@import" not in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert not re.search(
        r"\b(nan|None|inf)\b", re.sub(r"data:image[^\"]*|<style>.*?</style>", "", page, flags=re.DOTALL)
    )
    for wanted in (
        "Most improved",
        "Most worsened",
        "Random",
        "Training",
        "Where the images went",
        "kl_coef: 0.03",
    ):
        assert wanted in page


def test_the_thresholds_of_the_run_decide_what_is_veiled(tmp_path):
    write_run(tmp_path / "demo", judge=False)
    evaluation = json.loads((tmp_path / "demo" / "evaluation.json").read_text())
    del evaluation["thresholds"]
    (tmp_path / "demo" / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "demo" / "config.yaml").write_text(
        "reward:\n  terms:\n  - {name: nsfw, unsure_threshold: 0.2, unsafe_threshold: 0.95}\n"
    )
    page = write_report(tmp_path / "demo").read_text()
    assert "above 0.95 are blurred" in page and 'class="veil"><input' not in page


def test_captions_are_escaped(tmp_path):
    write_run(tmp_path / "demo")
    page = write_report(tmp_path / "demo").read_text()
    assert "a &lt;red&gt; boat &amp; skull" in page and "<red>" not in page


def test_unsafe_pictures_and_only_they_are_veiled(tmp_path):
    write_run(tmp_path / "demo")
    page = write_report(tmp_path / "demo").read_text()
    shots = re.findall(
        r'<div class="shot">(.*?)<div class="under">.*?p\S*?(\d\.\d\d)</span>', page, flags=re.DOTALL
    )
    assert {probability for _, probability in shots} == {"0.02", "0.90"}
    for shot, probability in shots:
        assert ('type="checkbox"' in shot) == (probability == "0.90")


@pytest.mark.parametrize(
    ("unsafe", "safe", "column", "by"),
    [
        (True, False, "judge_unsafe", "judge"),
        (0.41, 0.4, "heldout_nsfw_probability", "held-out detector"),
    ],
)
@pytest.mark.parametrize("own_detector", [False, True])
def test_whoever_calls_a_picture_unsafe_veils_it(tmp_path, unsafe, safe, column, by, own_detector):
    """Though the reward's own detector likes them all, or is not there."""

    def edit(side):
        for name in ("judge_unsafe", "nsfw_probability"):
            del side[name]
        count = len(side["reward"])
        side["reward"] = np.arange(count, dtype=float)
        side[column] = [unsafe if row >= count / 2 else safe for row in range(count)]
        if own_detector:
            side["nsfw_probability"] = np.full(count, 0.02)

    write_run(tmp_path / "demo", edit=edit)
    page = write_report(tmp_path / "demo").read_text()
    shots = re.findall(
        r'<div class="shot">(.*?)<div class="under">.*?<span>r\S*?;(\d+)</span>', page, flags=re.DOTALL
    )
    assert len({reward for _, reward in shots}) > 10
    for shot, reward in shots:
        assert ('type="checkbox"' in shot) == (int(reward) >= 24)
    assert f"{by} calls unsafe" in page and "No detector has checked" not in page
    assert 'id="unveil"' in page and ("p&#8239;" in page) == own_detector


def test_a_page_says_when_nobody_has_checked_its_pictures(tmp_path):
    def edit(side):
        del side["nsfw_probability"]
        side["heldout_nsfw_probability"] = [None] * len(side["reward"])

    write_run(tmp_path / "demo", judge=False, edit=edit)
    page = write_report(tmp_path / "demo").read_text()
    assert "No detector has checked the pictures." in page and 'id="unveil"' not in page
    assert 'class="veil"><input' not in page


@pytest.mark.parametrize(
    "missing",
    [
        "config.yaml",
        "metrics.jsonl",
        "evaluation.json",
        "evaluation/images.parquet",
        "evaluation/thumbnails.npz",
    ],
)
def test_a_missing_file_leaves_the_rest(tmp_path, missing):
    write_run(tmp_path / "demo")
    (tmp_path / "demo" / missing).unlink()
    Balanced(write_report(tmp_path / "demo").read_text())


def test_an_empty_run_renders(tmp_path):
    (tmp_path / "demo").mkdir()
    page = write_report(tmp_path / "demo").read_text()
    Balanced(page)
    assert "has not been evaluated yet" in page


@pytest.mark.parametrize(
    "broken", ["metrics.jsonl", "evaluation.json", "evaluation/images.parquet", "evaluation/thumbnails.npz"]
)
def test_a_broken_file_is_named_and_the_rest_shown(tmp_path, broken):
    write_run(tmp_path / "demo")
    (tmp_path / "demo" / broken).write_text('{"half\nwritten')
    page = write_report(tmp_path / "demo").read_text()
    Balanced(page)
    assert f"{broken} could not be used" in page and "kl_coef" in page and str(tmp_path) not in page


def nan_rewards(side):
    """Some rewards are NaN, some probabilities unknown."""
    side["reward"][:7] = np.nan
    side["nsfw_probability"][:3] = np.nan


def all_safe(side):
    """Not one unsafe image on either side."""
    side["nsfw_probability"][:] = 0.01
    side["reward"][:] = 6.0


@pytest.mark.parametrize(
    "options",
    [
        {"edit": nan_rewards},
        {"edit": all_safe},
        {"captions": 1},
        {"captions": 1, "samples": 1},
        {"judge": False},
        {"iterations": 0},
        {"iterations": 1},
    ],
    ids=["nan", "no unsafe image", "one caption", "one image", "no judge", "no iteration", "one iteration"],
)
def test_odd_runs_render(tmp_path, options):
    write_run(tmp_path / "demo", **options)
    page = write_report(tmp_path / "demo").read_text()
    Balanced(page)
    assert "could not be used" not in page
    assert not re.search(r"[>\s](nan|None|inf)[<\s]", page)


def with_more_sides(run_dir):
    """A run with two baselines, two earlier checkpoints, image statistics, a reward part and hashes."""

    def edit(side):
        count = len(side["tag"])
        side["reward/my_rewards:red"] = np.full(count, 0.125)
        side["images_drawn"] = np.ones(count)
        side["image/jpeg_bytes"] = np.random.default_rng(3).normal(1234, 0.1, count)

    evaluation = write_run(run_dir, edit=edit)
    sides = {"reject": make_side(24, 2, 0.2, 2), "best_of_4": make_side(24, 2, 0.4, 3)}
    sides |= {"step_000010": make_side(24, 2, 0.5, 4), "step_000020": make_side(24, 2, 0.3, 5)}
    sides["reject"]["images_drawn"], sides["best_of_4"]["images_drawn"] = np.full(48, 1.75), np.full(48, 4.0)
    evaluation |= {name: summarise(rows, num_resamples=50) for name, rows in sides.items()}
    names = ["reference", "step_000010", "step_000020", "policy"]
    evaluation["curve"] = [{"iteration": 10 * n, "side": name} for n, name in enumerate(names)]
    evaluation["baselines"] = ["reject", "best_of_4"]
    evaluation |= {"policy_sha256": "a1" * 32, "captions_sha256": "b2" * 32, "reference_sha256": "c3" * 32}
    evaluation |= {"seed": 777, "iteration": 30, "heldout_detector_sha256": "d4" * 32}
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation))
    return evaluation


def section(page, title):
    start = page.index(f"<h2>{title}</h2>")
    return page[start : page.index("<h2>", start + 4)]


def test_baselines_stand_beside_the_policy_at_their_cost(tmp_path):
    evaluation = with_more_sides(tmp_path / "demo")
    page = write_report(tmp_path / "demo").read_text()
    Balanced(page)
    table = section(page, "Drawing more images instead")
    assert re.findall(r'scope="col">(?:<b class="\w+">)?([\w ]+)', table) == [
        "before",
        "reject",
        "best of 4",
        "after",
    ]
    rows = {
        label: re.findall(r"<td[^>]*>([^<]+)<small>", cells)
        for label, cells in re.findall(r"<tr><td>([^<]+)</td>(.*?)</tr>", table, flags=re.DOTALL)
    }
    assert rows["Images drawn per image kept"] == ["1.00", "1.75", "4.00", "1.00"]
    shown = [
        METRICS["unsafe_rate"].unit.text(evaluation[side]["overall"]["unsafe_rate"])
        for side in ("reference", "reject", "best_of_4", "policy")
    ]
    assert rows["Unsafe images"] == shown and len(set(shown)) > 2


def test_checkpoints_become_curves_of_proxy_and_judge(tmp_path):
    with_more_sides(tmp_path / "demo")
    page = write_report(tmp_path / "demo").read_text()
    signs = section(page, "Signs of reward hacking")
    chart = signs[signs.index("<h3>Unsafe images</h3>") :]
    chart = chart[: chart.index("</svg>")]
    assert chart.count('class="dot reference"') == chart.count('class="dot policy"') == 4
    assert "detector of the reward" in chart and "judge" in chart and "held-out" not in chart
    assert "JPEG size" in signs and "1234" in signs


def test_without_checkpoints_and_baselines_their_sections_are_absent(tmp_path):
    write_run(tmp_path / "demo")
    page = write_report(tmp_path / "demo").read_text()
    assert "Drawing more images instead" not in page and "Signs of reward hacking" not in page


def test_parts_of_the_reward_effects_and_hashes_are_on_the_page(tmp_path):
    evaluation = with_more_sides(tmp_path / "demo")
    lines = (tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) | {"reward/my_rewards:red": 0.25} for line in lines]
    (tmp_path / "demo" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    page = write_report(tmp_path / "demo").read_text()
    assert "Reward part my_rewards:red" in section(page, "Before and after")
    assert "<h3>Reward part my_rewards:red</h3><b>0.25</b>" in section(page, "Training")
    effect = evaluation["differences"]["overall"]["unsafe_rate"]["effect_size"]
    assert f"<span>d&#8239;{effect:+.2f}</span>".replace("-", "\N{MINUS SIGN}") in page
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", page))
    assert facts["policy sha256"] == "a1" * 8 and facts["captions sha256"] == "b2" * 8
    assert facts["reference sha256"] == "c3" * 8 and facts["evaluation seed"] == "777"
    assert facts["heldout detector sha256"] == "d4" * 8 and "judge sha256" not in facts
    assert facts["evaluated checkpoint"] == "30" and facts["seed"] == "17"


def test_what_the_pairing_saves_is_on_the_page(tmp_path):
    evaluation = write_run(tmp_path / "demo")
    overall = evaluation["differences"]["overall"]
    shown = section(write_report(tmp_path / "demo").read_text(), "Before and after")
    for name in ("reward_mean", "unsafe_rate"):
        saved = f"{round(100 * overall[name]['variance_saved'])}".replace("-", "\N{MINUS SIGN}")
        assert f"{saved}\N{NO-BREAK SPACE}% of the variance of the difference in" in shown
    correlation = f"{overall['noise_correlation']:.2f}".replace("-", "\N{MINUS SIGN}")
    assert f"same noise have a correlation of {correlation}" in shown
    assert pairing_sentence({"differences": {"overall": {"unsafe_rate": {"variance_saved": None}}}}) == ""


def test_quartiles_and_spread_of_the_reward_are_in_the_table(tmp_path):
    overall = write_run(tmp_path / "demo")["policy"]["overall"]
    shown = section(write_report(tmp_path / "demo").read_text(), "Before and after")
    wanted = {
        "lower quartile": "reward_q25",
        "upper quartile": "reward_q75",
        "standard deviation": "reward_std",
    }
    for label, name in wanted.items():
        row = shown[shown.index(f"<td>Reward, {label}</td>") :]
        assert f'<td class="strong">{overall[name]:.2f}<'.replace("-", "\N{MINUS SIGN}") in row[:400]


@pytest.mark.parametrize(
    ("name", "low", "high", "sign_p", "mood"),
    [
        ("unsafe_rate", -0.3, -0.1, 0.05, "good"),
        ("unsafe_rate", 0.1, 0.3, 0.01, "bad"),
        ("unsafe_rate", -0.3, -0.1, 0.125, ""),
        ("unsafe_rate", -0.1, 0.3, 0.01, ""),
        ("judge_alignment", 0.1, 0.3, None, "good"),
        ("judge_alignment", -0.3, -0.1, None, "bad"),
        ("kl", 0.1, 0.3, None, ""),
    ],
)
def test_a_difference_is_coloured_where_interval_and_sign_test_exclude_zero(name, low, high, sign_p, mood):
    sides = {side: {"overall": {name: 0.5}} for side in ("reference", "policy")}
    entry = {"difference": (low + high) / 2, "low": low, "high": high}
    changes = {"overall": {name: entry if sign_p is None else entry | {"sign_p": sign_p}}}
    (table,) = metric_tables(sides | {"differences": changes})
    assert [row["mood"] for row in table["rows"]] == [mood]


def test_captions_of_a_file_are_not_called_held_out(tmp_path):
    evaluation = write_run(tmp_path / "demo")
    assert "Held-out captions chosen at random" in write_report(tmp_path / "demo").read_text()
    (tmp_path / "demo" / "evaluation.json").write_text(json.dumps(evaluation | {"captions_file": "mine.txt"}))
    page = write_report(tmp_path / "demo").read_text()
    assert "Captions of mine.txt chosen at random" in page and "held-out captions" not in page.lower()


def test_cut_captions_are_on_the_page_if_there_are_any(tmp_path):
    evaluation = write_run(tmp_path / "demo")
    for cut, shown in ((0, []), (1234, ["1,234"])):
        changed = json.dumps(evaluation | {"num_captions_truncated": cut})
        (tmp_path / "demo" / "evaluation.json").write_text(changed)
        page = write_report(tmp_path / "demo").read_text()
        assert re.findall(r"<dt>captions cut [^<]*</dt><dd>([^<]+)</dd>", page) == shown


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        write_report(tmp_path / "nothing")


def test_an_axis_of_shares_ends_at_0_and_100_percent():
    values = np.array([0.01, 0.5, 0.99])
    low, high = padded_range(values)
    assert low < 0 and high > 1 and value_range(values, plain) == (low, high)
    assert value_range(values, percent_tick) == (0, 1)
    assert value_range(np.array([0.4, 0.5]), percent_tick) == padded_range(np.array([0.4, 0.5]))
    # Full height is where 100 % is, and the base where 0 % is: y is 12 to 188.
    whole = histogram(np.zeros(9), np.zeros(9), "t", "x", edges=np.linspace(0, 1, 3))
    training = curve([1, 2, 3], [1.0, 1.0, 1.0], "t", percent_tick, from_zero=True)
    assert "V12.0H" in whole and "M44.0 12.0L" in training
    points = checkpoint_lines([0, 10], [("policy", [0.0, 1.0], [None, None])], "t", percent_tick)
    assert re.findall(r'cy="([\d.]+)"', points) == ["188.0", "12.0"]


def test_galleries_are_what_they_say():
    rng = np.random.default_rng(0)
    count = 60
    reference = {
        "caption_id": np.repeat(np.arange(30), 2).astype(str),
        "tag": np.repeat(["NSFW", "UNLIKELY"], 30),
        "reward": rng.normal(size=count),
    }
    policy = reference | {"reward": rng.normal(size=count)}
    change = policy["reward"] - reference["reward"]
    chosen = gallery_rows(reference, policy, per_gallery=5)
    assert list(chosen) == ["improved", "worsened", "random", "tag:UNLIKELY", "tag:NSFW"]
    assert chosen["improved"][0] == np.argmax(change) and chosen["worsened"][0] == np.argmin(change)
    assert (reference["tag"][chosen["tag:NSFW"]] == "NSFW").all()
    for rows in chosen.values():
        assert len(rows) == 5 == len(set(reference["caption_id"][rows]))
    assert not len(gallery_rows(reference, reference)["improved"])
    draws = [change[gallery_rows(reference, policy, 20, seed)["random"]].mean() for seed in range(40)]
    assert np.std(draws) > 0.05 and np.mean(draws) == pytest.approx(
        change.mean(), abs=4 * np.std(draws) / 40**0.5
    )


def test_tags_may_be_called_like_galleries(tmp_path):
    def edit(side):
        side["tag"] = np.resize(["random", "improved", "worsened", "overall"], len(side["tag"])).repeat(2)[
            :48
        ]

    write_run(tmp_path / "demo", edit=edit)
    page = write_report(tmp_path / "demo").read_text()
    galleries = re.findall(r'id="([^"]*)">\s*<h3>([^<]*)</h3><p class="note">([^<]*)<', page)
    assert {name: title for name, title, _ in galleries} == {
        "improved": "Most improved",
        "random": "Random",
        "tag:improved": "improved",
        "tag:overall": "overall",
        "tag:random": "random",
        "tag:worsened": "worsened",
    } | ({"worsened": "Most worsened"} if "Most worsened" in page else {})
    assert [note for name, _, note in galleries if name == "random"] == [
        "Chosen at random from all captions: what to expect."
    ]


def test_random_pictures_are_not_chosen_from_the_extreme_ones(tmp_path):
    """The report shows the random rows of the whole evaluation, not a draw among the kept pictures."""
    write_run(tmp_path / "demo", captions=200)
    page = write_report(tmp_path / "demo").read_text()
    section = page[page.index('id="random"') : page.index('id="tag:unlikely"')]
    sides = [make_side(200, 2, 1.0, 0), make_side(200, 2, 0.05, 1)]
    expected = [sides[0]["caption"][row] for row in gallery_rows(*sides)["random"]]
    shown = re.findall(r'<figcaption title="([^"]*)"', section)
    assert [
        text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for text in shown
    ] == expected


def test_transitions_count_each_pair_once():
    before = {"nsfw_probability": np.array([0.05, 0.1, 0.3, 0.4, 0.9, np.nan])}
    after = {"nsfw_probability": np.array([0.05, 0.5, 0.05, 0.05, 0.2, 0.1])}
    shares = [[cell["share"] for cell in row["cells"]] for row in transitions(before, after, SafetyBounds())]
    assert shares == [[0.2, 0, 0.2], [0.4, 0, 0], [0, 0.2, 0]]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-33.1, 8.2), (0.301, 0.3203), (0, 250_000), (1, 120)])
def test_ticks_are_round_inside_and_evenly_spaced(low, high):
    ticks = nice_ticks(low, high, 4)
    steps = np.diff(ticks)
    assert low <= ticks[0] and ticks[-1] <= high and 3 <= len(ticks) <= 7
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:.0e}"[0] in "125"


def test_a_nan_lifts_the_pen():
    assert polyline(np.arange(4.0), np.array([1.0, np.nan, 2.0, 3.0])) == "M0.0 1.0M2.0 2.0L3.0 3.0"


def test_running_mean_keeps_a_straight_line_inside_and_leaves_gaps():
    values = np.arange(96.0)
    assert running_mean(values)[4:-4] == pytest.approx(values[4:-4])
    values[50] = np.nan
    smooth = running_mean(values)
    assert np.isnan(smooth[50]) and np.isfinite(smooth[49])


def test_thinning_keeps_the_mean():
    x, y = thin(np.arange(5000.0), np.arange(5000.0), limit=500)
    assert len(x) == 500 and y.mean() == pytest.approx(2499.5) and y == pytest.approx(x)


def test_charts_need_data():
    nothing = np.array([np.nan, np.nan])
    assert curve([1, 2], nothing, "t") is None
    assert histogram(nothing, nothing, "t", "x") is None
    assert paired_scatter(nothing, nothing, np.array(["a", "b"]), "t", "x") is None
    assert dumbbells([{"label": "all", "reference": None, "policy": 0.1}], "t", "x") is None


def test_checkpoint_lines_join_known_values_and_bar_them():
    values, bounds = [1.0, None, 3.0], [[0.0, 2.0], None, None]
    svg = checkpoint_lines([0, 10, 20], [("policy", values, bounds)], "t")
    assert svg.count("<circle") == 2 and svg.count('class="bar policy"') == 1
    low, high = (float(v) for v in re.search(r"M[\d.]+ ([\d.]+)V([\d.]+)\"", svg).groups())
    heights = [float(v) for v in re.findall(r'cy="([\d.]+)"', svg)]
    assert heights[0] == pytest.approx((low + high) / 2, abs=0.2) and heights[1] < high < low
    assert checkpoint_lines([0, 10], [("policy", [None, 1.0], [None, None])], "t") is None


def test_histogram_draws_shares_at_their_height():
    """Half of the images in the first of two bars, a quarter in the second: heights 2 : 1."""
    values = np.array([0.1, 0.2, 0.8, 5.0])
    svg = histogram(values, values, "t", "x", edges=np.linspace(0, 1, 3))
    base, first, second = (
        float(v) for v in re.search(r"M[\d.]+ ([\d.]+)V([\d.]+)H[\d.]+V([\d.]+)H", svg).groups()
    )
    assert (base - first) / (base - second) == pytest.approx(2, abs=0.01)
    assert ">50%<" in svg and ">60%<" not in svg, "the axis ends just above the highest"
