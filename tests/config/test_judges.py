"""Which judges may be named, and that none of them is trained on."""

import pytest
import yaml
from parsing import parse, refused

from dalle_ppo.config.command_line import to_dict
from dalle_ppo.config.evaluation import EvaluationConfig
from dalle_ppo.config.settings import Config


def judges(text):
    return parse("--evaluation.judges", text).evaluation


def test_a_judge_is_a_name_or_an_entry_with_settings():
    found = judges('["my:first", {name: nsfw, detector: laion-b32, weight: -1}]')
    assert [judge.label for judge in found.parsed_judges] == ["my:first", "nsfw"]
    assert found.parsed_judges[1].own.detector == "laion-b32"
    assert [judge.common.weight for judge in found.parsed_judges] == [1.0, -1.0]
    assert found.judges[1]["unsafe_threshold"] == 0.4, "the settings that are saved are spelled out"
    assert parse().evaluation.judges == []


def test_what_is_saved_can_be_read_again(tmp_path):
    config = parse("--evaluation.judges", '["my:first", "my:second"]', "--evaluation.suite", "iconworld")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    assert parse("--config", str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    "text, words",
    [
        ("[clip_similarity]", "measures the same as reward term clip_similarity"),
        ("[nsfw]", "give it another detector"),
        ("[{name: nsfw, unsafe_threshold: 0.9}]", "measures the same as reward term nsfw"),
        ("[clip_similarty]", "did you mean clip_similarity?"),
        ('["my:first", "my:first"]', "my:first is named twice"),
        ('[{name: "my:first", weight: 0}]', "weight of my:first is 0"),
        ('[{name: "my:first", only_if: "my:first > 0"}]', "leave only_if out"),
        ('[{name: "my:first", threshold: 1}]', "has no setting threshold"),
    ],
)
def test_other_judges_are_refused_in_one_line(text, words):
    with pytest.raises(ValueError) as caught:
        Config(evaluation=EvaluationConfig(judges=yaml.safe_load(text)))
    message = str(caught.value)
    assert words in message and "evaluation.judges" in message
    assert "\n" not in message and "reward.terms:" not in message


def test_the_users_own_function_is_refused_where_it_is_trained_on():
    message = refused("--reward.terms", '[{name: "my:first"}]', "--evaluation.judges", '["my:first"]')
    assert "my:first measures the same as reward term my:first" in message


def test_an_unknown_suite_is_refused():
    assert "suite" in refused("--evaluation.suite", "geneval")
