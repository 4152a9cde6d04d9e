"""The notebook about answers runs on a run without any, and says what the files say."""

import json
import shutil
from itertools import combinations
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.heads.preference import load_preference
from dalle_ppo.preferences.reward_model.data import part_of

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "preferences.ipynb"
PROBE = """
import json
flags = {key: bool(facts[key].flagged) for key in facts}
some = [key for key in flags if flags[key]][:5]
found = {
    "habits": {habit.rater: [habit.decided, habit.first, habit.biased, habit.repeats] for habit in found},
    "kappa": kappa.to_dict(),
    "accuracy": learned.accuracy.value,
    "pairs": learned.accuracy.pairs,
    "bins": [[b.predicted, b.right, b.pairs] for b in learned.calibration],
    "blurred": [bool((pictures([k]) != np.array(Image.open(store.image_path(k)))).any()) for k in some],
    "first, last": [told[order[0]], told[order[-1]], told.max(), told.min()],
}
print("FOUND" + json.dumps(found, default=float))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory, tiny_run):
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(NOTEBOOK.parent, root / "notebooks")
    shutil.copytree(tiny_run.run_dir, root / "runs" / "mine")
    config = root / "runs" / "mine" / "config.yaml"
    config.write_text(config.read_text().replace("threshold: 1.0", "threshold: 0.4"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(PROBE))
    settings = {"timeout": 600, "startup_timeout": 300, "kernel_name": "python3"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUN", "runs/mine")
        NotebookClient(notebook, resources={"metadata": {"path": root / "notebooks"}}, **settings).execute()
    text = "".join(output.text for output in notebook.cells[-1].outputs)
    return notebook, json.loads(text[text.index("FOUND") + 5 :]), root / "runs" / "mine"


@pytest.fixture(scope="module")
def answers(executed) -> list[dict]:
    lines = (executed[2] / "simulated_preferences" / "answers.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_nothing_complains_and_the_runs_own_answers_are_not_touched(executed):
    notebook, _, run = executed
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert not (run / "preferences").exists()


@pytest.mark.slow
def test_the_rater_who_does_not_look_is_found(executed, answers):
    habits = executed[1]["habits"]
    for rater, (decided, first, biased, _) in habits.items():
        own = [row["ranks"] for row in answers if row["rater"] == rater]
        single = [ranks for ranks in own if ranks.count(1) == 1]
        assert (decided, first) == (len(single), sum(ranks[0] == 1 for ranks in single))
        assert biased == (rater == "Cy")
    assert habits["Ann"][3] > 20


@pytest.mark.slow
def test_kappa_is_that_of_the_common_pairs(executed, answers):
    """Ben has no repeated sets; Cy neither."""
    said: dict[str, dict] = {"Ben": {}, "Cy": {}}
    for row in answers:
        if row["rater"] in said:
            for (a, x), (b, y) in combinations(sorted(zip(row["images"], row["ranks"], strict=True)), 2):
                said[row["rater"]].setdefault((a, b), []).append(np.sign(y - x))
    common = [p for p in said["Ben"] if p in said["Cy"] and len(said["Ben"][p]) == len(said["Cy"][p]) == 1]
    kappa = cohen_kappa_score(*([said[rater][pair][0] for pair in common] for rater in ("Ben", "Cy")))
    assert executed[1]["kappa"]["Ben"]["Cy"] == pytest.approx(kappa, abs=0.03)


@pytest.mark.slow
def test_the_calibration_is_that_of_the_saved_model(executed, answers):
    _, found, run = executed
    head, clip = (
        load_preference(run / "notebook_reward_model.safetensors"),
        load_clip(str(World().clip), None),
    )
    margins = []
    for row in answers:
        if part_of(row["caption"]) != "test":
            continue
        files = [run / "simulated_preferences" / "images" / k[:2] / f"{k}.png" for k in row["images"]]
        pixels = torch.from_numpy(np.stack([np.array(Image.open(file)) for file in files]))
        images = clip.embed_images(pixels.permute(0, 3, 1, 2).float() / 255)
        score, _ = head(images, clip.embed_texts([row["caption"]] * len(files)))
        for (a, x), (b, y) in combinations(zip(score.tolist(), row["ranks"], strict=True), 2):
            if x != y:
                margins.append((a - b) * np.sign(y - x))
    assert found["pairs"] == len(margins)
    assert found["accuracy"] == pytest.approx(np.mean(np.array(margins) > 0))
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    mean = sum(predicted * pairs for predicted, _, pairs in found["bins"]) / len(margins)
    assert mean == pytest.approx(sure.mean(), abs=1e-3)


@pytest.mark.slow
def test_flagged_pictures_are_blurred_and_the_most_telling_set_comes_first(executed):
    found = executed[1]
    first, last, most, least = found["first, last"]
    assert all(found["blurred"]) and len(found["blurred"]) == 5 and (first, last) == (most, least)
