"""The steps of an alignment: who labels, and with which reward a round trains."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_preferences import toy_store

from dalle_ppo.build import alignment, captions
from dalle_ppo.build.alignment import AlignBuild, build_steps, different_sets, round_config, train_policy
from dalle_ppo.build.label_steps import FixedSets, page, unanswered
from dalle_ppo.build.simulated import NAME, open_rater, rater_against_judge, read_pictures, simulated_answers
from dalle_ppo.config.evaluation import EvaluationConfig
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.iconworld.rater import load_rater
from dalle_ppo.iconworld.scenes import PlacedIcon, Scene, draw_batch
from dalle_ppo.iconworld.world import World
from dalle_ppo.preferences.aligning import AlignSettings
from dalle_ppo.preferences.answer import Answer, PictureSet
from dalle_ppo.preferences.drawing import png_of
from dalle_ppo.preferences.page import command
from dalle_ppo.preferences.reward_model.network import FitSettings
from dalle_ppo.preferences.store import Store

CAPTION, KEYS = "a red boat", ("a" * 64, "b" * 64)
SCENES = [("skull", "red"), ("boat", "red"), ("fish", "blue"), ("fish", "yellow")]


@pytest.fixture
def store_and_set(tmp_path):
    store = Store(tmp_path)
    pictures = draw_batch([Scene((PlacedIcon(*icon, 12, 12, 40),), "white") for icon in SCENES])
    keys = tuple(store.add_image(png_of(pixels), CAPTION) for pixels in pictures)
    return store, PictureSet("one", CAPTION, keys)


def test_the_simulated_rater_fills_the_store_and_answers_a_set_once(store_and_set):
    store, shown = store_and_set
    rater = load_rater(World().rater, wrong_share=0.0)
    assert simulated_answers(store, [shown], rater, 3) == 1
    assert simulated_answers(store, [shown], rater, 3) == 0, "answered in this round"
    (answer,) = store.answers()
    # the boat; a warm fish before a cold one; the skull last
    assert answer.ranks == (4, 1, 3, 2) and answer.images == shown.images
    assert (answer.rater, answer.source, answer.round) == (NAME, "simulated", 3)


def test_rater_and_judge_agree_on_clear_scenes(store_and_set):
    store, shown = store_and_set
    found = rater_against_judge(World(), open_rater(World()), read_pictures(store, shown.images))
    assert (found.pictures, found.unsafe, found.icons) == (4, 1.0, 1.0)
    blank = torch.full((1, 3, 64, 64), 252, dtype=torch.uint8)
    assert rater_against_judge(World(), open_rater(World()), blank).icons == 1.0


def test_a_picture_that_is_gone_is_named(store_and_set):
    store, shown = store_and_set
    store.image_path(shown.images[1]).unlink()
    with pytest.raises(ValueError, match=f"{shown.images[1]}.png cannot be read .*; draw its set again"):
        simulated_answers(store, [shown], open_rater(World()))


def test_only_the_built_in_world_has_a_simulated_rater():
    with pytest.raises(ValueError, match="--rater simulated knows the built-in world's pictures only"):
        open_rater(None)


def test_the_page_gets_the_sets_of_the_round_and_no_others(tmp_path):
    store = toy_store(tmp_path, captions=2)
    sets = [PictureSet(a.set_id, a.caption, a.images) for a in store.answers()]
    new = replace(sets[0], id="new")
    drawer = FixedSets(store, [*sets, new])
    assert drawer.draw(2) == new and drawer.set_id(0) == sets[0].id and drawer.store is store
    with pytest.raises(ValueError, match="all 3 sets of this round are done"):
        drawer.draw(3)
    assert unanswered(store, [*sets, new]) == [new]
    page(0, 2)(store, sets, 0)  # all are answered: it is not opened


def build(terms, **changes):
    config = Config(
        run_dir="run", reward=RewardConfig(terms=terms), evaluation=EvaluationConfig(at_end=True), **changes
    )
    return AlignBuild(config, AlignSettings(rounds=2, iterations=10), FitSettings())


def test_a_round_trains_with_its_own_reward_model():
    terms = [
        {"name": "clip_similarity", "weight": 3.0},
        {"name": "preference", "reward_model": "old", "beta": 2.0},
    ]
    config = round_config(build(terms), Path("new.safetensors"), 10)
    similarity, preference = config.reward.parsed
    assert similarity.common.weight == 3 and config.num_iterations == 10
    assert (preference.own.reward_model, preference.own.beta) == ("new.safetensors", 2.0)


def test_without_a_preference_term_it_is_the_whole_reward():
    config = round_config(build([{"name": "clip_similarity"}]), Path("new.safetensors"), 20)
    assert [term.name for term in config.reward.parsed] == ["preference"]


def test_only_the_last_round_is_evaluated():
    at_end = [
        round_config(build([{"name": "clip_similarity"}]), Path("m"), n).evaluation.at_end for n in (10, 20)
    ]
    assert at_end == [False, True]


def test_a_run_that_is_further_than_the_round_is_refused_and_stays_as_it_was(tmp_path):
    """Training would find nothing to do, and end as if it had trained."""
    run = tmp_path / "run"
    (run / "checkpoints" / "step_000090").mkdir(parents=True)
    (run / "config.yaml").write_text("num_iterations: 90\n")
    of_run = build([{"name": "clip_similarity"}])
    of_run = replace(of_run, config=replace(of_run.config, run_dir=str(run)))
    with pytest.raises(ValueError, match=r"is at iteration 90, .*give the --iterations"):
        train_policy(of_run, tmp_path / "reward_model.safetensors", 10)
    with pytest.raises(ValueError, match=r"holds a run that was not begun by dalle_ppo\.align"):
        build_steps(of_run, page(0, 2))
    assert (run / "config.yaml").read_text() == "num_iterations: 90\n"
    assert not (tmp_path / "config.yaml").exists() and len(list(run.iterdir())) == 2


def test_a_metric_that_the_raters_reward_lacks_is_refused_before_anything_is_drawn(tmp_path):
    config = Config(run_dir=str(tmp_path / "run"), keep_best="unsafe_rate")
    build = AlignBuild(config, AlignSettings(rounds=2, iterations=10), FitSettings())
    with pytest.raises(ValueError, match=r"^keep_best is unsafe_rate; .* need that term in reward\.terms"):
        build_steps(build, page(0, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{}", '{"accuracy": {"value": "high"}}'])
def test_damaged_numbers_of_a_reward_model_are_named(tmp_path, text, monkeypatch):
    monkeypatch.setattr(alignment, "load_run_clip", lambda *_: None)
    of_run = build([{"name": "clip_similarity"}], device="cpu")
    of_run = replace(of_run, config=replace(of_run.config, run_dir=str(tmp_path / "run")))
    numbers = tmp_path / "reward_model.json"
    numbers.write_text(text)
    with pytest.raises(ValueError) as caught:
        build_steps(of_run, page(0, 2)).refit(Store(tmp_path), numbers.with_suffix(".safetensors"))
    assert str(caught.value).startswith(f"{numbers} is damaged (")
    assert str(caught.value).endswith("; remove it to do the round again, or restore it")


class Numbered:
    """Draws sets whose pictures are all the same where the number says so."""

    def __init__(self, same):
        self.same, self.drawn = same, []

    def draw_many(self, numbers):
        self.drawn += numbers
        return [PictureSet(str(n), CAPTION, ("a",) if self.same(n) else ("a", "b")) for n in numbers]


def test_a_round_has_as_many_sets_as_asked_for_with_something_to_say_about_each():
    told, drawer = [], Numbered(lambda n: n % 3 == 0)
    sets = different_sets(drawer, 60, 40, told.append)
    assert [int(shown.id) for shown in sets] == [n for n in range(60, 200) if n % 3][:40]
    assert sum(told) == 40 and drawer.drawn == sorted(set(drawer.drawn))


def test_a_policy_that_draws_one_picture_only_is_told_of():
    with pytest.raises(ValueError, match=r"40 of 40 sets hold one picture several times; .*temperature"):
        different_sets(Numbered(lambda n: True), 0, 10, lambda n: None)


def test_a_set_that_nobody_is_shown_is_not_waited_for(tmp_path):
    store = toy_store(tmp_path, captions=1)
    same = PictureSet("same", CAPTION, ("a", "a"))
    assert unanswered(store, [same]) == []


def test_no_two_streams_of_captions_are_the_same():
    names = [name for name in vars(captions) if name.endswith("_STREAM")]
    assert len(names) >= 5 and len({getattr(captions, name) for name in names}) == len(names)


def test_the_page_counts_from_where_the_earlier_rounds_ended(tmp_path, monkeypatch):
    store, goals = Store(tmp_path), []
    for n in range(3):
        store.append(Answer(CAPTION, KEYS, "ranking", "ann", "person", f"old {n}", ranks=(1, 2)))
    new = [PictureSet(name, CAPTION, KEYS) for name in ("x", "y")]
    monkeypatch.setattr(command, "serve", lambda args, *_: goals.append(args.goal))
    with pytest.raises(ValueError, match="2 of 2 sets have no answer yet"):
        page(0, 2)(store, new, 1)
    assert goals == [5]
