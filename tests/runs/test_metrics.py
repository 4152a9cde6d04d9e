"""metrics.jsonl survives kills and resumes; TensorBoard holds what was written; the docs list all metrics."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dalle_ppo.runs.metrics import (
    METRIC_FAMILIES,
    METRICS,
    TENSORBOARD_GROUPS,
    MetricsWriter,
    evaluation_tag,
    image_grid,
    read_metrics,
    tensorboard_tag,
    undefined_metrics,
    write_evaluation,
    write_settings,
)

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def write_iterations(run_dir, numbers, resume_iteration=0, **extra):
    """Write the given iterations without TensorBoard."""
    with MetricsWriter(run_dir, resume_iteration=resume_iteration, tensorboard=False) as writer:
        for number in numbers:
            writer.write({"iteration": number, "reward_mean": float(number)} | extra)


def test_one_json_object_an_iteration(tmp_path):
    write_iterations(tmp_path, [1, 2, 3])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")])
def test_missing_values_are_null(tmp_path, value):
    write_iterations(tmp_path, [1], kl=value)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert '"kl": null' in text


def test_scalars_of_numpy_and_torch_become_numbers(tmp_path):
    torch = pytest.importorskip("torch")
    write_iterations(tmp_path, [1], kl=torch.tensor(1.5), images=np.int64(96), entropy=np.float32(0.25))
    assert read_metrics(tmp_path / "metrics.jsonl")[0] | {} == {
        "iteration": 1,
        "reward_mean": 1.0,
        "kl": 1.5,
        "images": 96,
        "entropy": 0.25,
    }


def test_vectors_are_refused(tmp_path):
    with pytest.raises(TypeError, match="scalar"):
        write_iterations(tmp_path, [1], kl=[1.0, 2.0])


def test_resume_cuts_off_what_came_after_the_checkpoint(tmp_path):
    write_iterations(tmp_path, [1, 2, 3, 4, 5])
    write_iterations(tmp_path, [3, 4], resume_iteration=2, kl=7.0)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["iteration"] for record in records] == [1, 2, 3, 4]
    assert [record.get("kl") for record in records] == [None, None, 7.0, 7.0]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    write_iterations(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "rew')
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    write_iterations(tmp_path, [3], resume_iteration=2)
    assert [record["iteration"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_resuming_past_the_end_is_refused_and_harms_nothing(tmp_path):
    write_iterations(tmp_path, [1, 2])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"holds 2 iterations, but the checkpoint is at 5"):
        MetricsWriter(tmp_path, resume_iteration=5, tensorboard=False)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_damaged_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\nnot json\n{"iteration": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_starting_afresh_empties_the_file(tmp_path):
    write_iterations(tmp_path, [1, 2])
    write_iterations(tmp_path, [1])
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_docs_list_every_metric_with_its_definition():
    rows = dict(
        re.findall(r"^\| `([^`]+)` \| (.*) \|$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    for name, definition in (METRICS | METRIC_FAMILIES).items():
        assert rows.get(name) == definition, f"docs/metrics.md: {name}"


def test_definitions_are_one_line():
    assert all(text.endswith(".") and "\n" not in text for text in METRICS.values())


def test_groups_name_defined_metrics_and_the_story_comes_first():
    assert all(name in METRICS for names in TENSORBOARD_GROUPS.values() for name in names)
    tags = sorted(tensorboard_tag(name) for name in METRICS if name != "iteration")
    assert len(set(tags)) == len(tags)
    assert tags[:3] == ["1_goal/1_unsafe_rate", "1_goal/2_reward_mean", "1_goal/3_clip_similarity"]


def test_undefined_metrics_are_found():
    assert undefined_metrics({"kl": 1, "reward/clip": 2, "made_up": 3}) == ["made_up"]


def test_image_grid_places_pictures_row_by_row():
    images = np.stack([np.full((4, 6, 3), n, dtype=np.uint8) for n in range(5)])
    grid = image_grid(images, columns=3, gap=1)
    assert grid.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    assert (grid[1:5, 8:14] == 1).all() and (grid[6:10, 1:7] == 3).all()
    assert (grid[6:10, 15:] == 255).all() and (grid[0] == 255).all()


def test_tensorboard_is_imported_only_when_used():
    code = (
        "import sys, tempfile; from dalle_ppo.runs.metrics import MetricsWriter;"
        "MetricsWriter(tempfile.mkdtemp(), tensorboard=False).close();"
        "assert not {'torch', 'tensorboard', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_tensorboard_holds_scalars_histograms_and_images(tmp_path):
    pytest.importorskip("tensorboard")
    with MetricsWriter(tmp_path) as writer:
        writer.write({"iteration": 1, "kl": 2.5, "reward_mean": math.nan, "reward/clip": 6.0})
        writer.write_histograms(
            1, {"reward": np.array([-30.0, 6.0, math.nan]), "empty": np.array([math.nan])}
        )
        writer.write_images(1, "fixed_captions", np.zeros((3, 8, 8, 3), dtype=np.uint8))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {tensorboard_tag("kl"), tensorboard_tag("reward/clip")}
    assert events.Scalars(tensorboard_tag("kl"))[0].value == 2.5
    assert tags["histograms"] == ["histograms/reward"]
    assert events.Histograms("histograms/reward")[0].histogram_value.num == 2
    assert tags["images"] == ["images/fixed_captions"]


def test_tensorboard_holds_the_config_and_hparams_beside_the_evaluation(tmp_path):
    pytest.importorskip("tensorboard")
    write_settings(tmp_path, "seed: 3\n", {"seed": 3, "kl.target": None, "device": "cpu", "extra": [1]}, 0)
    with MetricsWriter(tmp_path) as writer:
        writer.write({"iteration": 0, "kl": 2.5})
    write_evaluation(tmp_path, {0: {"kl": 0.0, "other": 1}, 1: {"kl": 2.0, "judge_alignment": None}})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (text,) = events.Tensors("config/text_summary")
    assert b"    seed: 3" in text.tensor_proto.string_val[0]
    hparams = events.PluginTagToContent("hparams")
    started = metadata.parse_session_start_info_plugin_data(hparams["_hparams_/session_start_info"])
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in started.hparams.items()}
    assert values == {"seed": 3.0, "kl.target": "null", "device": "cpu", "extra": "[1]"}
    experiment = metadata.parse_experiment_plugin_data(hparams["_hparams_/experiment"])
    shown = {metric.name.tag for metric in experiment.metric_infos}
    assert {tensorboard_tag("kl"), evaluation_tag("kl"), evaluation_tag("unsafe_rate")} <= shown
    assert "_hparams_/session_end_info" in hparams
    assert set(events.Tags()["scalars"]) == {tensorboard_tag("kl"), evaluation_tag("kl")}
    assert [(e.step, e.value) for e in events.Scalars(evaluation_tag("kl"))] == [(0, 0.0), (1, 2.0)]
