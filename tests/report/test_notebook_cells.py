"""Single cells of the notebooks on runs that differ from the default one."""

import json
from pathlib import Path

import matplotlib as mpl
import nbformat
import numpy as np
import pandas as pd
import pytest

from dalle_ppo.config.command_line import parse_command_line, to_yaml
from dalle_ppo.runs.pictures import image_grid

FOLDER = Path(__file__).parents[2] / "notebooks"


def source(name: str, part: str) -> str:
    """The one code cell with `part` in it."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and part in cell.source]
    return cell.source


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    """Cells run in the notebooks' folder; their figures are kept for the test, and shown nowhere."""
    monkeypatch.chdir(FOLDER)
    with mpl.rc_context({"backend": "agg"}):
        import matplotlib.pyplot as plt

        plt.close("all")
        yield plt
        plt.close("all")


@pytest.fixture
def plain_run(tmp_path) -> Path:
    """A run whose reward has no term nsfw, with what training writes for it."""
    config, *_ = parse_command_line(["--reward.terms", "[{name: clip_similarity}]"], "train", "")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    columns = ("reward_mean", "reward_mean/UNLIKELY", "reward_std", "kl", "kl_k1", "entropy", "clip_fraction")
    columns += ("ratio_first_minibatch_max_deviation", "sampler_log_prob_gap", "skipped_updates")
    columns += ("gradient_norm", "captions_truncated", "seconds")
    lines = [{"iteration": n} | {name: 0.001 * n for name in columns} for n in range(1, 13)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.mark.parametrize("name", ["reward_distribution", "reward_design"])
def test_a_run_without_nsfw_is_told_in_one_sentence(name, plain_run):
    with pytest.raises(ValueError, match="trained without the term nsfw") as caught:
        exec(source(name, "load_config(run"), {"run": plain_run})
    assert plain_run.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_without_nsfw_is_checked_by_its_reward(plain_run, figures):
    names = {"run": plain_run}
    for part in ("load_config(run", "axhspan(start", "def signs"):
        exec(source("training_run", part), names)
    titles = [axis.get_title("left") for axis in figures.figure(1).axes]
    assert titles == ["reward_mean", "reward_mean by tag"]
    assert len(names["signs"](names["metrics"])) == 11


@pytest.mark.parametrize("height, width", [(64, 64), (256, 256), (100, 40)])
def test_every_label_lies_in_its_picture(height, width, figures):
    """The oracle is the drawn grid: below a label lies the colour of the picture that it names."""
    count = 14
    scores = {"stored": np.arange(count), "only CLIP": np.random.default_rng(0).permutation(count)}
    chosen = pd.DataFrame({"place": range(count)})
    names = {
        **{"np": np, "pd": pd, "plt": figures, "image_grid": image_grid, "DESIGNS": {n: n for n in scores}},
        **{"score": lambda rows, design: scores[design], "zone": lambda rows: ["C0"] * count},
        **{"chosen": chosen, "shown": chosen, "pictures": {"rows": np.arange(count)}},
        "kept_pictures": np.full((count, height, width, 3), 1, np.uint8)
        * np.arange(10, 10 + count, dtype=np.uint8)[:, None, None, None],
    }
    exec(source("reward_design", "AGAINST ="), names)
    axis = figures.gcf().axes[1]
    drawn = np.asarray(axis.images[0].get_array())
    assert len(axis.texts) == 12
    for label, picture in zip(axis.texts, names["order"], strict=True):
        x, y = label.get_position()
        assert drawn[round(y), round(x), 0] == 10 + picture
        above, left = drawn[round(y - 0.1 * height) :, round(x)], drawn[round(y), round(x - 0.1 * width) :]
        assert above[0, 0] != 10 + picture and left[0, 0] != 10 + picture, "at its upper left corner"
