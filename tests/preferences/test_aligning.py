"""The rounds of an alignment: their order, the check that stops them, and what is done again after a kill."""

import hashlib
from dataclasses import replace

import pytest

from dalle_ppo.preferences.aligning import Accuracy, AlignSettings, Steps, align
from dalle_ppo.preferences.answer import PictureSet
from dalle_ppo.preferences.store import Answer

SETTINGS = AlignSettings(rounds=3, answers=2, iterations=10, min_accuracy=0.6)


class Killed(Exception):
    pass


class World:
    """Steps that note what they do, and are killed at a given step."""

    def __init__(self, accuracies=(0.9, 0.9), kill_at=None, silent=False, chosen=()):
        self.done, self.accuracies, self.kill_at, self.silent = [], accuracies, kill_at, silent
        self.chosen = chosen

    def note(self, what):
        if what == self.kill_at:
            raise Killed
        self.done.append(what)

    def draw(self, store, number):
        self.note(f"draw {number}")
        keys = [hashlib.sha256(f"{number} {i}".encode()).hexdigest() for i in range(4)]
        return [
            PictureSet(f"{number}-{i}", "a boat", tuple(keys[2 * i : 2 * i + 2]), i in self.chosen)
            for i in range(2)
        ]

    def label(self, store, sets, number):
        done = {answer.set_id for answer in store.answers()}
        for shown in sets:
            if shown.id not in done and not self.silent:
                self.note(f"label {shown.id}")
                store.append(
                    Answer("a boat", shown.images, "ranking", "ann", "person", shown.id, ranks=(1, 2))
                )

    def refit(self, store, file):
        self.note(f"fit on {len(store.answers())}")
        file.write_text("a model")
        return 0.75

    def check(self, file, store, answers):
        assert file.read_text() == "a model"
        number = int(answers[0].set_id[0])
        self.note(f"check {file.parent.name} on {[answer.set_id for answer in answers]}")
        return Accuracy(self.accuracies[number - 1], 0.5, 1.0)

    def train(self, file, iterations):
        self.note(f"train with {file.parent.name} to {iterations}")

    def run(self, folder, settings=SETTINGS):
        return list(align(folder, settings, Steps(self.draw, self.label, self.refit, self.check, self.train)))


ALL = [
    "draw 0", "label 0-0", "label 0-1", "fit on 2", "train with round_000 to 10",
    "draw 1", "label 1-0", "label 1-1", "check round_000 on ['1-0', '1-1']", "fit on 4",
    "train with round_001 to 20",
    "draw 2", "label 2-0", "label 2-1", "check round_001 on ['2-0', '2-1']", "fit on 6",
    "train with round_002 to 30",
]  # fmt: skip


def test_rounds_in_order(tmp_path):
    world = World()
    rounds = world.run(tmp_path)
    assert world.done == ALL
    assert [(r.answers, r.old_model, r.iterations) for r in rounds] == [
        (2, None, 10),
        (2, 0.9, 20),
        (2, 0.9, 30),
    ]


def test_a_finished_alignment_does_nothing_again(tmp_path):
    first = World().run(tmp_path)
    again = World()
    assert [r.line() for r in again.run(tmp_path)] == [r.line() for r in first] and again.done == []


@pytest.mark.parametrize("kill_at", ALL)
def test_killed_at_any_step_it_goes_on_and_asks_nobody_twice(tmp_path, kill_at):
    killed = World(kill_at=kill_at)
    with pytest.raises(Killed):
        killed.run(tmp_path)
    resumed = World()
    resumed.run(tmp_path)
    done = killed.done + resumed.done
    assert list(dict.fromkeys(done)) == ALL, "in order, and nothing left out"
    repeated = {step for step in done if done.count(step) > 1}
    assert not any(step.startswith(("draw", "label", "train")) for step in repeated)


def test_it_stops_where_the_model_no_longer_knows_what_raters_like(tmp_path):
    world = World(accuracies=(0.9, 0.55))
    *_, last = world.run(tmp_path)
    assert world.done == ALL[:-2], "nothing is trained on"
    assert "agrees with 55.0%" in last.stopped and "below --min_accuracy 0.6" in last.line()
    again = World()
    assert again.run(tmp_path)[-1].stopped == last.stopped and again.done == []


def test_the_check_leaves_out_sets_that_were_chosen_for_being_hard(tmp_path):
    with pytest.raises(Killed):
        World(kill_at="label 1-1", chosen=(1,)).run(tmp_path)
    resumed = World()
    resumed.run(tmp_path)
    assert "check round_000 on ['1-0']" in resumed.done, "which ones they were is kept"
    assert "check round_001 on ['2-0', '2-1']" in resumed.done


def test_without_answers_it_says_so_and_goes_on_later(tmp_path):
    with pytest.raises(ValueError, match="none of its 2 sets has an answer; label them"):
        World(silent=True).run(tmp_path)
    resumed = World()
    resumed.run(tmp_path)
    assert resumed.done == ALL[1:]


def finished_run(folder):
    """A run of 90 iterations by dalle_ppo.train."""
    (folder / "checkpoints" / "step_000090").mkdir(parents=True)
    (folder / "config.yaml").write_text("num_iterations: 90\n")
    return folder


def test_a_run_that_no_alignment_has_begun_is_refused_before_anything_is_drawn(tmp_path):
    run, world = finished_run(tmp_path / "a run"), World()
    with pytest.raises(ValueError, match=r"name another folder, with --model\.path '.*a run' to start from"):
        world.run(run)
    assert world.done == [] and (run / "config.yaml").read_text() == "num_iterations: 90\n"
    assert not (run / "align").exists() and not (run / "preferences").exists()


@pytest.mark.parametrize("iterations", [3, 5])
def test_fewer_iterations_than_before_are_refused_before_anything_is_drawn(tmp_path, iterations):
    with pytest.raises(Killed):
        World(kill_at="draw 1").run(tmp_path)
    world = World()
    with pytest.raises(ValueError, match=r"--iterations is too small: .* is at iteration 10, .* --run_dir"):
        world.run(tmp_path, replace(SETTINGS, iterations=iterations))
    assert world.done == []
    World().run(tmp_path, replace(SETTINGS, iterations=6))  # to 12 in the second round


@pytest.mark.parametrize("file", ["round.json", "sets.json"])
@pytest.mark.parametrize(
    "text", ["", "[1", "{}", "[{}]", '[{"id": 1, "caption": "a", "images": []}]', '{"round": 0}', "\xff", "5"]
)
def test_a_damaged_file_of_a_round_is_named(tmp_path, file, text):
    with pytest.raises(Killed):
        World(kill_at="label 1-0").run(tmp_path)
    number = 0 if file == "round.json" else 1
    path = tmp_path / "align" / f"round_00{number}" / file
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"; remove it to do the round again, or restore it$") as caught:
        World().run(tmp_path)
    assert str(caught.value).startswith(f"{path} is damaged (") and "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"answers": 0}, {"min_accuracy": 1.5}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AlignSettings(**wrong)
