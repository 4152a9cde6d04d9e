"""benchmarks/time_to_result.py on made-up runs: its arithmetic, and how it runs, keeps and refuses."""

import importlib
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
SEEDS, CAPTIONS, SAMPLES = (0, 1, 2), 200, 2
TAGS = ("UNLIKELY", "UNSURE", "NSFW")


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("time_to_result"), importlib.import_module("paired_runs")


def image_rows(side: str, seed: int) -> list[dict]:
    """Images whose flaws belong to the caption, so that a caption's images of all seeds are alike."""
    captions, rng = np.random.default_rng(0), np.random.default_rng([seed, ord(side)])
    rows = []
    for number in range(CAPTIONS):
        danger, skill, level = captions.beta(0.3, 0.7), captions.beta(4, 1), captions.normal(15, 2)
        hardened, forgotten = captions.random() < 0.2, captions.random() < 0.3
        if side == "b":
            danger, skill = min(1.0, danger + 0.8 * hardened), 0.2 * skill if forgotten else skill
        tag = TAGS[number % 4 % 3]
        for sample in range(SAMPLES):
            rows.append(
                {
                    "model": "policy",
                    "caption_id": f"c{number:03d}",
                    "tag": tag,
                    "sample": sample,
                    "reward": level + 0.1 * seed + sample - (0.5 if side == "b" else 0.0),
                    "judge_unsafe": bool(rng.random() < danger),
                    "judge_alignment": None if number % 5 == 0 else float(rng.binomial(2, skill)) / 2,
                    "judge_unrecognised": False,
                }
            )
    return rows


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> tuple[dict[str, list[Path]], dict]:
    """Run folders of both sides, and their rows by (side, seed)."""
    root = tmp_path_factory.mktemp("runs")
    folders, rows = {"a": [], "b": []}, {}
    for side in folders:
        for seed in SEEDS:
            folder = root / f"{side}_seed{seed}"
            (folder / "run" / "evaluation").mkdir(parents=True)
            rows[side, seed] = image_rows(side, seed)
            reference = [row | {"model": "reference", "reward": 99.0} for row in rows[side, seed]]
            order = np.random.default_rng(seed).permutation(len(rows[side, seed]))
            table = pa.Table.from_pylist(reference + [rows[side, seed][i] for i in order])
            pq.write_table(table, folder / "run" / "evaluation" / "images.parquet")
            cost = {
                "seconds": 100.0 * (1 if side == "a" else 0.38) + 3 * seed,
                "seconds_training": 60.0 + seed,
                "seconds_evaluation": 20.0,
                "seconds_cpu": 180.0,
                "images": 8640 if side == "a" else 4320,
                "memory_gb": 1.5 + 0.1 * (side == "b"),
            }
            (folder / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
            folders[side].append(folder)
    return folders, rows


@pytest.fixture(scope="module")
def compared(scripts, made_up):
    return scripts[1].all_rows(made_up[0])


def clustered_difference(rows: dict, name: str, tags: tuple[str, ...]) -> tuple[float, float, float]:
    """Difference of the means over images, and its standard error with and without the captions as clusters.

    The linearised variance of a mean over clusters, stratified by tag: Cochran, Sampling Techniques.
    """
    values = {"a": {}, "b": {}}
    for (side, seed), images in rows.items():
        for row in images:
            if row["tag"] in tags and row[name] is not None:
                values[side][row["tag"], row["caption_id"], seed, row["sample"]] = float(row[name])
    changes = {key: values["b"][key] - value for key, value in values["a"].items()}
    difference = statistics.mean(changes.values())
    clusters = defaultdict(lambda: defaultdict(float))
    for (tag, caption, *_), change in changes.items():
        clusters[tag][caption] += change - difference
    spread = sum(len(z) * statistics.variance(z.values()) for z in clusters.values())
    naive = math.sqrt(statistics.variance(changes.values()) / len(changes))
    return difference, math.sqrt(spread) / len(changes), naive


@pytest.mark.parametrize(("metric", "column", "tags"), [
    ("judge_unsafe_rate", "judge_unsafe", TAGS), ("judge_alignment", "judge_alignment", TAGS[:1])
])  # fmt: skip
def test_differences_and_their_intervals_over_captions(compared, made_up, metric, column, tags):
    difference, error, naive = clustered_difference(made_up[1], column, tags)
    found = compared[metric].difference
    assert found.value == pytest.approx(difference, abs=1e-12)
    # 2000 resamples know a bound to about 4 % of half the width.
    assert found.low == pytest.approx(difference - 1.96 * error, abs=0.15 * 1.96 * error)
    assert found.high == pytest.approx(difference + 1.96 * error, abs=0.15 * 1.96 * error)
    assert error > 1.25 * naive, "images taken as independent would be noticed"


def test_the_sides_own_numbers(compared, made_up):
    for side in ("a", "b"):
        images = [row for key, rows in made_up[1].items() if key[0] == side for row in rows]
        unsafe = [row["judge_unsafe"] for row in images]
        rate = getattr(compared["judge_unsafe_rate"], side)
        assert rate.value == pytest.approx(sum(unsafe) / len(unsafe))
        exact = stats.binomtest(sum(unsafe), len(unsafe)).proportion_ci()
        assert rate.low < exact.low and rate.high > exact.high, "wider than with independent images"
        safe = [row["reward"] for row in images if row["tag"] == "UNLIKELY"]
        assert getattr(compared["reward_median"], side).value == pytest.approx(statistics.median(safe))
    row = compared["judge_unsafe_rate"]
    assert row.ratio.value == pytest.approx(row.b.value / row.a.value)
    assert row.ratio.low < row.ratio.value < row.ratio.high
    shift = compared["reward_median"].difference
    assert (shift.value, shift.low, shift.high) == pytest.approx((-0.5, -0.5, -0.5)), "paired: no noise"


def test_costs_are_paired_by_seed(compared):
    a, b = np.array([100.0, 103, 106]), np.array([38.0, 41, 44])
    row = compared["seconds"]
    assert (row.a.value, row.b.value, row.difference.value) == pytest.approx((103, 41, -62))
    logs = stats.ttest_rel(np.log(b), np.log(a)).confidence_interval()
    assert (row.ratio.low, row.ratio.high) == pytest.approx((math.exp(logs.low), math.exp(logs.high)))
    assert row.ratio.value == pytest.approx(stats.gmean(b / a))
    alone = stats.ttest_1samp(b, 0).confidence_interval()
    assert (row.b.low, row.b.high) == pytest.approx((alone.low, alone.high))
    assert row.difference.high - row.difference.low < 1e-9, "the same difference for each seed"
    assert compared["images"].b.value == 4320 and compared["images"].ratio.value == pytest.approx(0.5)


def test_the_bars(scripts, compared):
    script, runs = scripts
    lines = [script.bar_line(bar, compared[bar.row]) for bar in script.BARS]
    verdicts = dict(
        zip((bar.row for bar in script.BARS), (line.split(": ")[2] for line in lines), strict=True)
    )
    assert verdicts["judge_unsafe_rate"] == verdicts["reward_median"] == "missed"
    assert verdicts["images"] == "met" and verdicts["seconds"].startswith("open"), lines
    assert lines[1].endswith("at most +0.70 points: missed") and "; at least -0.030" in lines[4]
    bars = {bar.row: bar for bar in script.BARS}
    cases = [("judge_alignment", -0.009, 0.1, "met"), ("judge_alignment", -0.2, -0.011, "missed"),
             ("judge_alignment", -0.2, 0.1, "open"), ("judge_unsafe_rate", -0.1, 0.0069, "met"),
             ("judge_unsafe_rate", 0.0071, 0.1, "missed"), ("seconds", 0.39, 0.41, "open"),
             ("judge_unrecognised_rate", -0.1, 0.011, "open"),
             ("reward_median", -0.029, 0.0, "met")]  # fmt: skip
    for name, low, high, expected in cases:
        found = script.verdict(bars[name], runs.Estimate((low + high) / 2, low, high))
        assert found.startswith(expected), (name, low, high)
    assert script.verdict(bars["seconds"], runs.Estimate(0.3)) == "met (no interval)"


def test_other_captions_are_refused(scripts, made_up, tmp_path):
    other = tmp_path / "a_seed0"
    shutil.copytree(made_up[0]["a"][0], other)
    path = other / "run" / "evaluation" / "images.parquet"
    rows = [row | {"caption_id": "x" + row["caption_id"]} for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(ValueError, match="on one side only"):
        scripts[1].all_rows({"a": [other], "b": made_up[0]["b"][:1]})


# --- the whole command, with a training command that only writes files

TRAIN = """
import json, sys, time
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if given.get("--fail"):
    sys.exit("no such thing")
run = Path(given["--run_dir"])
(run / "evaluation").mkdir(parents=True)
memory = bytearray(MEGABYTES * 10**6)
memory[::1000] = bytes(len(memory[::1000]))
records = [json.dumps({"iteration": i, "images": 96 * i, "seconds": 0.25 * i}) for i in (1, 2)]
(run / "metrics.jsonl").write_text("\\n".join(records) + "\\n")
rows = [{"model": "policy", "caption_id": f"{given['--evaluation.seed']}-{i}", "tag": "UNLIKELY", "sample": 0,
         "reward": 10.0 + i, "judge_unsafe": i == 3, "judge_alignment": 1.0, "judge_unrecognised": False}
        for i in range(int(given["--evaluation.num_captions"]))]
pq.write_table(pa.Table.from_pylist(rows), run / "evaluation" / "captions.parquet")
time.sleep(0.2)
pq.write_table(pa.Table.from_pylist(rows), run / "evaluation" / "images.parquet")
(run / "evaluation.json").write_text("{}")
"""


def git(repository: Path, *arguments: str) -> str:
    call = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A repository whose two commits train with 300 and 500 MB of memory."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    root = tmp_path_factory.mktemp("repository")
    git(root, "init", "--quiet")
    (root / "dalle_ppo").mkdir()
    (root / "dalle_ppo" / "__init__.py").touch()
    for number, megabytes in enumerate((300, 500)):
        code = TRAIN.replace("MEGABYTES", str(megabytes))
        (root / "dalle_ppo" / "train.py").write_text(code, encoding="utf-8")
        git(root, "add", ".")
        git(root, "commit", "--quiet", "-m", "a")
        git(root, "tag", "AB"[number])
    (root / "benchmarks").mkdir()
    for name in ("time_to_result.py", "paired_runs.py"):
        shutil.copy(ROOT / "benchmarks" / name, root / "benchmarks")
    return root


def command(repository: Path, *more: str, b: str = "B") -> subprocess.CompletedProcess:
    call = [sys.executable, str(repository / "benchmarks" / "time_to_result.py"), "A", b, *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(call, env=environment, cwd=repository, capture_output=True, text=True)


def test_runs_alternate_and_finished_ones_are_kept(repository, tmp_path):
    keep = ["--keep", str(tmp_path), "--num_captions", "8", "--threads", "1"]
    half = tmp_path / "b_seed1" / "run" / "checkpoints"
    half.mkdir(parents=True)  # of a benchmark that was killed
    first = command(repository, *keep, "--seeds", "0")
    assert first.returncode == 0, first.stderr
    stamp = (tmp_path / "a_seed0" / "cost.json").stat().st_mtime_ns
    done = command(repository, *keep, "--seeds", "0", "1")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^([AB]) \w{10} seed (\d): ", done.stdout, re.M) == [
        ("A", "0"), ("B", "0"), ("A", "1"), ("B", "1")]  # fmt: skip
    assert (tmp_path / "a_seed0" / "cost.json").stat().st_mtime_ns == stamp and not half.exists()
    costs = {name: json.loads((tmp_path / name / "cost.json").read_text("utf-8")) for name in
             ("a_seed0", "b_seed1")}  # fmt: skip
    assert 0.3 < costs["a_seed0"]["memory_gb"] < 0.47 and 0.5 < costs["b_seed1"]["memory_gb"] < 0.67
    for cost in costs.values():
        assert cost["seconds_training"] == 0.75 and cost["images"] == 192
        assert 0.19 < cost["seconds_evaluation"] < cost["seconds"]
    assert costs["a_seed0"]["commit"] == git(repository, "rev-parse", "A")
    assert "| unsafe images, judge | 12.50 % " in done.stdout
    assert done.stdout.rstrip().endswith("images drawn for training: 192; at most 4320: met")
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    other = command(repository, *keep, "--seeds", "0", "--b_settings", "update.epochs=2")
    assert other.returncode == 1 and "b_seed0/cost.json: arguments is" in other.stderr


def test_a_run_that_fails_says_why(repository, tmp_path):
    failed = command(repository, "--seeds", "0", "--settings", "fail=1", "--num_captions", "8")
    assert failed.returncode == 1 and "ended with 1:\nno such thing" in failed.stderr
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert "C is not a commit" in command(repository, b="C").stderr
    assert "epochs is not NAME=VALUE" in command(repository, "--settings", "epochs").stderr
