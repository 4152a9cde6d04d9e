"""The notebooks run from top to bottom on a tiny run, say what the run's files say, and are stored small."""

import json
import math
import re
import shlex
import shutil
import statistics
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

from dalle_ppo.config.command_line import parse_command_line
from dalle_ppo.config.sections import setting_names

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ("reward_distribution", "training_run", "reward_design")
STORED = (*NAMES, "preferences")  # the last one is executed by tests of its own
SMALL = "--num_iterations 20 --checkpoint_every 5 --evaluation.num_captions 200"
# The steps are far too large, so that after two of them the policy draws something else.
TINY = (
    "--num_iterations 2 --rollout.rollout_batch_size 8 --update.minibatch_size 8 --evaluation.num_captions 24"
    " --actor.trainable all --actor.learning_rate 0.005 --actor.warmup_iterations 0"
)
ZONES = ("safe", "borderline", "unsafe")

# The last cell of each executed copy: what the kernel holds, for the tests to compare with the files.
PROBES = {
    "reward_distribution": """
rows = stored["rows"]
unsafe = rows[(before.zone[rows] == "unsafe").to_numpy()]
safe = rows[((before.zone == "safe") & ~(before.judge_unsafe > 0.5))[rows].to_numpy()]
def original(chosen):
    return stored["reference"][np.searchsorted(rows, chosen)]
def detail(found):
    return float(np.abs(np.diff(found.astype(float), axis=2)).mean())
found = {
    "contribution": {side: zones[side]["contribution"].tolist() for side in sides},
    "moves": {tag: table.to_numpy().tolist() for tag, table in moves.items()},
    "missed": {f"{tag} {side}": value for (tag, side), value in table.missed.items()},
    "price": price.to_dict("index"),
    "bars": {side: {bar: int((bar_of(rows) == bar).sum()) for bar in bars} for side, rows in sides.items()},
    "num_unsafe": len(unsafe),
    "blur": detail(pictures("reference", unsafe)) / detail(original(unsafe)),
    "safe_unchanged": bool((pictures("reference", safe) == original(safe)).all()),
}
SHOW_UNSAFE = True
found["shown"] = bool((pictures("reference", unsafe) == original(unsafe)).all())
""",
    "training_run": """
healthy = {"ratio_first_minibatch_max_deviation": 0.0, "sampler_log_prob_gap": 0.0, "skipped_updates": 0.0}
healthy |= {"clip_fraction": 0.01, "gradient_norm": 0.5, "captions_truncated": 0.0, "explained_variance": 0.5}
healthy |= {"value_mean": 0.0, "reward_std": 10.0, "entropy": 5.0, "reward_mean/UNLIKELY": 15.0}
healthy = pd.DataFrame(healthy, index=range(40)).assign(
    unsafe_rate=np.linspace(0.4, 0.1, 40), reward_mean=np.linspace(-2, 10, 40), kl=np.linspace(0, 2, 40)
)
healthy["kl_k1"] = healthy.kl * 1.1
falling = np.linspace(1, 0, 40)
breaks = {
    "ratio": {"ratio_first_minibatch_max_deviation": 0.01},
    "sampler": {"sampler_log_prob_gap": 0.1},
    "skipped": {"skipped_updates": (falling == 1).astype(float)},
    "clip fraction": {"clip_fraction": 0.5},
    "clipped gradient": {"gradient_norm": 3.0},
    "cut off": {"captions_truncated": 0.3},
    "unsafe rate": {"unsafe_rate": 0.4},
    "spread": {"reward_std": 10 * falling**3},
    "entropy": {"entropy": 5 * falling},
    "estimate": {"kl_k1": 3 * healthy.kl},
    "KL grows": {"reward_mean": 10 * falling},
    "UNLIKELY": {"reward_mean/UNLIKELY": 15 * falling},
    "variance": {"explained_variance": -0.2},
}
def looks(table):
    return table.index[table.result == "look"].tolist()
found = {
    "healthy": looks(signs(healthy)),
    "breaks": {name: looks(signs(healthy.assign(**change))) for name, change in breaks.items()},
    "without critic": len(signs(healthy.drop(columns="value_mean"))) - len(signs(healthy)),
    "band": [float(start), float(noise)],
    "strips": [strip(path).shape for path in paths],
    "checked": signs(metrics).value.tolist(),
}
""",
    "reward_design": """
found = {
    "score": score(images, stored).tolist(),
    "designs": designs.to_dict("index"),
    "selection": selection.to_dict("index"),
    "scores": {name: score(chosen, design).tolist() for name, design in DESIGNS.items()},
    "settings": {name: [arguments(design), vars(design)] for name, design in DESIGNS.items()},
    "tempted": tempted,
    "errors": errors.loc[0.5].to_dict(),
}
terms = [*config.reward.terms, {"name": "module:function", "weight": 2.0}]
config = replace(config, reward=replace(config.reward, terms=terms))
images["reward/module:function"] = np.arange(len(images))
found["extra"] = (score(images, stored) - images.reward).tolist()
""",
}


def execute(root: Path, name: str) -> tuple[nbformat.NotebookNode, dict]:
    """The executed copy of a notebook, and what its kernel held at the end."""
    notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
    setup = code_cells(notebook)[0]
    assert setup.source.count(SMALL) == 1
    setup.source = setup.source.replace(SMALL, TINY)
    probe = PROBES[name] + '\nimport json\nprint("FOUND" + json.dumps(found))'
    notebook.cells.append(nbformat.v4.new_code_cell(probe))
    settings = {"timeout": 600, "startup_timeout": 300, "kernel_name": "python3"}
    NotebookClient(notebook, resources={"metadata": {"path": root / "notebooks"}}, **settings).execute()
    text = "".join(output.text for output in notebook.cells[-1].outputs)
    return notebook, json.loads(text[text.index("FOUND") + 5 :])


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(FOLDER, root / "notebooks")
    return root


@pytest.fixture(scope="module")
def executed(checkout) -> dict:
    """The first notebook makes the run; the others are told where it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RUN", raising=False)
        results = {NAMES[0]: execute(checkout, NAMES[0])}
        (checkout / "runs" / "notebook").rename(checkout / "runs" / "mine")
        patch.setenv("RUN", "runs/mine")
        with ThreadPoolExecutor() as pool:
            others = pool.map(lambda name: execute(checkout, name), NAMES[1:])
            return results | dict(zip(NAMES[1:], others, strict=True))


@pytest.fixture(scope="module")
def rows(executed, checkout) -> list[dict]:
    table = pq.ParquetFile(checkout / "runs" / "mine" / "evaluation" / "images.parquet").read().to_pylist()
    sides = side_of(table, "reference") + side_of(table, "policy")
    assert len(sides) == 96
    return [row | {"zone": zone_of(row["nsfw_probability"])} for row in sides]


@pytest.fixture(scope="module")
def evaluation(executed, checkout) -> dict:
    return json.loads((checkout / "runs" / "mine" / "evaluation.json").read_text())


def zone_of(probability: float) -> str:
    return "unsafe" if probability > 0.4 else "borderline" if probability > 0.1 else "safe"


def side_of(rows: list[dict], side: str) -> list[dict]:
    return [row for row in rows if row["model"] == side]


def mean(values) -> float:
    values = [value for value in values if value is not None]
    return sum(values) / len(values)


# --- top to bottom


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs_and_nothing_complains(executed, name):
    cells = code_cells(executed[name][0])
    assert all(cell.execution_count for cell in cells)
    for number, cell in enumerate(cells):
        streams = {output.get("name") for output in cell.outputs if output.output_type == "stream"}
        # The first cell of the first notebook trains, under progress bars.
        assert "stderr" not in streams or (name == NAMES[0] and number == 0), cell.outputs
    made = "".join(output.get("text", "") for output in cells[0].outputs)
    assert ("unsafe rate" in made and "run: notebook" in made) if name == NAMES[0] else made == "run: mine\n"


# --- reward_distribution


def test_the_zones_contributions_add_up_to_the_mean_reward(executed, rows, evaluation):
    found = executed["reward_distribution"][1]["contribution"]
    for side, contributions in found.items():
        images = side_of(rows, side)
        for zone, contribution in zip(ZONES, contributions, strict=True):
            expected = sum(row["reward"] for row in images if row["zone"] == zone) / len(images)
            assert contribution == pytest.approx(expected, abs=1e-4)
        assert sum(contributions) == pytest.approx(evaluation[side]["overall"]["reward_mean"], abs=1e-4)


def test_the_table_of_moves_counts_pairs(executed, rows):
    after = {(row["caption_id"], row["sample"]): row["zone"] for row in side_of(rows, "policy")}
    pairs = Counter()
    for row in side_of(rows, "reference"):
        pairs[row["tag"], row["zone"], after[row["caption_id"], row["sample"]]] += 1
    assert any(old != new for _, old, new in pairs)
    for tag, table in executed["reward_distribution"][1]["moves"].items():
        total = sum(count for key, count in pairs.items() if key[0] == tag)
        expected = [[pairs[tag, old, new] / total for new in ZONES] for old in ZONES]
        assert table == [pytest.approx(line) for line in expected]


def test_missed_are_unsafe_to_the_judge_alone(executed, rows):
    found = executed["reward_distribution"][1]["missed"]
    assert len(found) == 6
    for key, share in found.items():
        tag, side = key.split()
        images = [row for row in side_of(rows, side) if row["tag"] == tag]
        missed = [row["judge_unsafe"] and row["zone"] != "unsafe" for row in images]
        assert share == pytest.approx(mean(missed))


def test_the_least_kl_is_that_of_two_coins(executed, rows, evaluation):
    price = executed["reward_distribution"][1]["price"]
    for tag in ("UNLIKELY", "UNSURE", "NSFW"):
        coins = []
        for side in ("policy", "reference"):
            images = [row for row in side_of(rows, side) if row["tag"] == tag]
            heads = (sum(row["zone"] == "unsafe" for row in images) + 0.5) / (len(images) + 1)
            coins.append((heads, 1 - heads))
        least = sum(b * math.log(b / a) for b, a in zip(*coins, strict=True))
        assert price[tag]["needed"] == pytest.approx(least)
        assert price[tag]["spent"] == pytest.approx(evaluation["policy"][tag]["kl"], rel=1e-4)
    whole = price["all, by their shares"]
    assert whole["unsafe before"] == pytest.approx(evaluation["reference"]["overall"]["unsafe_rate"])
    assert whole["spent"] == pytest.approx(evaluation["policy"]["overall"]["kl"], rel=1e-4)


def test_every_image_stands_in_one_bar(executed, rows):
    for side, bars in executed["reward_distribution"][1]["bars"].items():
        zones = Counter(row["zone"] for row in side_of(rows, side))
        assert (bars["unsafe"], bars["borderline"]) == (zones["unsafe"], zones["borderline"])
        assert sum(bars.values()) == 48 and len(bars) == 5


def test_flagged_pictures_are_blurred_until_asked_for(executed):
    found = executed["reward_distribution"][1]
    assert found["num_unsafe"] > 3
    assert found["blur"] < 1 / 3
    assert found["safe_unchanged"] and found["shown"]


# --- training_run


def test_the_checks_find_what_is_broken_and_nothing_else(executed):
    found = executed["training_run"][1]
    assert found["healthy"] == []
    for name, looks in found["breaks"].items():
        assert len(looks) == 1 and name in looks[0], f"{name}: {looks}"
    assert found["without critic"] == -1
    assert len(found["checked"]) == 13 and all(map(math.isfinite, found["checked"]))


def test_the_band_is_the_luck_between_neighbours(executed, checkout):
    lines = (checkout / "runs" / "mine" / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line)["unsafe_rate"] for line in lines)
    center, noise = executed["training_run"][1]["band"]
    assert center == pytest.approx((first + second) / 2)
    assert noise == pytest.approx(1.96 * abs(second - first) / math.sqrt(2))


def test_the_samples_of_each_checkpoint_are_one_row_of_eight(executed):
    shapes = executed["training_run"][1]["strips"]
    assert len(shapes) == 2  # before and after training
    for height, width, channels in shapes:
        assert channels == 3 and abs(width - 8 * height) < 16


# --- reward_design


def reward_of(row: dict, t: dict) -> float:
    """The reward as the docs tell it."""
    p = row["nsfw_probability"]
    if p > t["unsafe_threshold"]:
        return t["unsafe_penalty"]
    if p > t["unsure_threshold"]:
        return t["unsure_penalty"]
    bonus = t["clean_bonus"] if p < t["clean_threshold"] else 0.0
    return t["clip_weight"] * row["clip_similarity"] + bonus


def test_the_reward_computed_again_is_the_stored_one(executed, rows):
    found = executed["reward_design"][1]
    assert found["score"] == pytest.approx([row["reward"] for row in rows], abs=1e-5)
    assert found["extra"] == pytest.approx([2.0 * n for n in range(len(rows))], abs=1e-4)


def test_every_design_scores_as_its_numbers_say(executed, rows):
    found, images = executed["reward_design"][1], side_of(rows, "reference")
    assert set(found["settings"]) >= {"stored", "strict", "lenient", "no CLIP", "only CLIP"}
    for name, (_, design) in found["settings"].items():
        rewards = [reward_of(row, design) for row in images]
        assert found["scores"][name] == pytest.approx(rewards, abs=1e-4)
        facts = found["designs"][name]
        assert facts["mean"] == pytest.approx(mean(rewards), abs=1e-4)
        assert facts["spread"] == pytest.approx(statistics.pstdev(rewards), rel=1e-4)
        safe = [row["nsfw_probability"] <= design["unsure_threshold"] for row in images]
        signal = statistics.pstdev([r for r, s in zip(rewards, safe, strict=True) if s])
        assert facts["caption signal"] == pytest.approx(signal / statistics.pstdev(rewards), abs=1e-4)
        unpunished = [s for s, row in zip(safe, images, strict=True) if row["judge_unsafe"]]
        punished = [not s for s, row in zip(safe, images, strict=True) if not row["judge_unsafe"]]
        assert facts["unsafe, unpunished"] == pytest.approx(mean(unpunished))
        assert facts["safe, punished"] == pytest.approx(mean(punished))


def middle_ranks(values: list[float]) -> list[float]:
    """Rank of each value, the mean rank among equals."""
    return [sum(v < value for v in values) + values.count(value) / 2 for value in values]


def test_the_rank_correlation_is_spearmans(executed):
    found = executed["reward_design"][1]
    for name, facts in found["designs"].items():
        ranks = [middle_ranks(found["scores"][design]) for design in ("stored", name)]
        assert facts["rank correlation"] == pytest.approx(statistics.correlation(*ranks), abs=1e-6)


def test_selection_keeps_the_best_of_each_caption(executed, rows):
    found, images = executed["reward_design"][1], side_of(rows, "reference")
    for name, (_, design) in found["settings"].items():
        best: dict[str, dict] = {}
        for row in images:
            rival = best.setdefault(row["caption_id"], row)
            if reward_of(row, design) > reward_of(rival, design):
                best[row["caption_id"]] = row
        facts = found["selection"][name]
        assert facts["unsafe, judge"] == pytest.approx(mean(row["judge_unsafe"] for row in best.values()))
        assert facts["alignment, judge"] == pytest.approx(
            mean(row["judge_alignment"] for row in best.values())
        )
    everything = found["selection"]["no selection"]
    assert everything["unsafe, detector"] == pytest.approx(mean(row["zone"] == "unsafe" for row in images))


def test_a_sum_is_tempted_and_by_how_many_pairs(executed, rows):
    unsafe, safe = ([row for row in rows if row["zone"] == zone] for zone in ("unsafe", "safe"))
    pairs = [(u, s) for u in unsafe for s in safe if u["caption_id"] == s["caption_id"]]
    assert len(pairs) > 3
    tempted = executed["reward_design"][1]["tempted"]
    for weight, share in ((0, tempted[0]), (3, tempted[60]), (12, tempted[-1])):
        sums = [(weight * u["clip_similarity"] - 1, weight * s["clip_similarity"]) for u, s in pairs]
        assert share == pytest.approx(mean(unsafe > safe for unsafe, safe in sums))


def test_missed_and_false_alarms_of_a_threshold(executed, rows):
    errors, images = executed["reward_design"][1]["errors"], side_of(rows, "reference")
    missed = [row["nsfw_probability"] <= 0.5 for row in images if row["judge_unsafe"]]
    alarms = [row["nsfw_probability"] > 0.5 for row in images if not row["judge_unsafe"]]
    assert errors == pytest.approx({"missed": mean(missed), "false alarms": mean(alarms)})


def test_the_settings_of_a_design_train_on_it(executed):
    for arguments, design in executed["reward_design"][1]["settings"].values():
        nsfw, clip = parse_command_line(shlex.split(arguments), "train", "")[0].reward.terms
        found = {name: nsfw[name] for name in design if name != "clip_weight"}
        assert found | {"clip_weight": clip["weight"]} == design
        assert clip["only_if"] == f"nsfw <= {design['unsure_threshold']:g}"


# --- what is stored


@pytest.mark.parametrize("name", STORED)
def test_stored_copies_have_clean_outputs(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    pictures = 0
    for cell in cells:
        assert cell.outputs and "execution" not in cell.metadata
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr"
            pictures += any(kind.startswith("image/") for kind in output.get("data", {}))
    assert pictures >= 6
    text = "".join(str(cell) for cell in notebook.cells)
    assert not re.search(r"/(tmp|work|home|root|Users|mnt)/", re.sub(r"[A-Za-z0-9+/=\\n]{200,}", "", text))


def test_stored_copies_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 1.5e6


def test_all_begin_alike_and_name_settings_that_exist():
    notebooks = [nbformat.read(FOLDER / f"{name}.ipynb", as_version=4) for name in STORED]
    assert len({code_cells(notebook)[0].source for notebook in notebooks}) == 1
    text = "\n".join(cell.source for notebook in notebooks for cell in notebook.cells)
    named = set(
        re.findall(r"`((?:credit|actor|update|ppo|kl|critic|reward|evaluation|rollout)\.(?!json)\w+)", text)
    )
    assert len(named) > 5 and named <= set(setting_names())
    commands = re.findall(r"`(--run_dir [^`]+)`", text)
    assert len(commands) >= 5
    for command in commands:
        parse_command_line(shlex.split(command), "train", "")
