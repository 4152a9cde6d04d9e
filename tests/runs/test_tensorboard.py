"""TensorBoard holds what was written, in the order of the table."""

import math

import numpy as np
import pytest

from dalle_ppo.runs.metric_table import METRICS
from dalle_ppo.runs.metrics import MetricsWriter
from dalle_ppo.runs.tensorboard import evaluation_tag, tensorboard_tag, write_evaluation, write_settings


def test_the_story_comes_first_and_no_two_metrics_share_a_tag():
    tags = sorted(tensorboard_tag(name) for name in METRICS if name != "iteration")
    assert len(set(tags)) == len(tags)
    assert tags[:3] == ["1_goal/1_unsafe_rate", "1_goal/2_reward_mean", "1_goal/3_clip_similarity"]
    assert tensorboard_tag("unsafe_rate/NSFW") == "3_by_part/unsafe_rate_NSFW"
    assert tensorboard_tag("kl_coef") == "4_details/kl_coef"


def test_places_in_a_group_are_numbered_without_gap_or_double():
    places = {}
    for metric in METRICS.values():
        for group, place in (metric.board or ("", None), ("evaluation", metric.board_evaluation)):
            places.setdefault(group, []).append(place)
    for group, numbers in places.items():
        known = [number for number in numbers if number is not None]
        assert sorted(known) == list(range(1, len(known) + 1)), group


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
