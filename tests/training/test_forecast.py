"""How long the rest of a run takes: forecasts against virtual runs that do all the work piece by piece."""

from dataclasses import replace

import pytest

from dalle_ppo.config.command_line import parse_command_line
from dalle_ppo.config.evaluation import EvaluationConfig
from dalle_ppo.config.rollout import RolloutConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.training import progress_bar
from dalle_ppo.training.forecast import Forecast, Rates, clock, forecast, rates_of, rough_rates, work_left
from dalle_ppo.training.progress_bar import ProgressBar

CONFIG = Config(
    num_iterations=50,
    checkpoint_every=20,
    rollout=RolloutConfig(rollout_batch_size=96),
    evaluation=EvaluationConfig(num_captions=1000, samples_per_caption=2),
)


def iteration(seconds=5.0, images=100, rollout=1.5, reward=0.5, scoring=1.0, update=1.8) -> dict:
    """Metrics of an iteration."""
    phases = {"seconds_rollout": rollout, "seconds_reward": reward, "seconds_scoring": scoring}
    phases["seconds_update"] = update
    return {"seconds": seconds, "images_per_second": images / seconds, **phases}


def virtual_run(config: Config, done: int, per_iteration: float, per_checkpoint: float) -> float:
    """Seconds of training from `done` on, counted piece by piece."""
    seconds = 0.0
    while done < config.num_iterations:
        seconds += per_iteration
        done += 1
        if done % config.checkpoint_every == 0 or done == config.num_iterations:
            seconds += per_checkpoint
    return seconds


@pytest.mark.parametrize("last", [19, 20, 40, 50])
@pytest.mark.parametrize("done", [0, 1, 19, 20, 21, 40, 49, 50, 60])
def test_training_takes_its_iterations_and_checkpoints(done, last):
    config = replace(CONFIG, num_iterations=last)
    work = work_left(config, done, samples=32, networks=3)
    rates = Rates(iteration=5 / 96, draw=0.02, score=0.01, checkpoint=7.0)
    assert forecast(rates, work).training == pytest.approx(virtual_run(config, done, 5, 7))
    unmeasured = replace(rates, checkpoint=None)
    expected = virtual_run(config, done, 5, 32 * (0.02 + 0.01))
    assert forecast(unmeasured, work).training == pytest.approx(expected)


@pytest.mark.parametrize("done, due", [(19, 0), (20, 1), (50, 1)])
def test_a_checkpoint_that_is_due_counts_until_it_is_written(done, due):
    written = work_left(CONFIG, done, samples=32, networks=3)
    assert work_left(CONFIG, done, 32, 3, saved=False) == replace(
        written, checkpoints=written.checkpoints + due
    )


@pytest.mark.parametrize("networks", [2, 3])
def test_the_evaluation_draws_two_sides_and_scores_one_sample_of_each_caption(networks):
    rates = Rates(iteration=1.0, draw=0.02, score=0.06)
    seconds = 0.0
    for passes in (2, 1):  # the policy's images are scored by both models, the reference's by itself
        for _ in range(1000):
            seconds += 2 * 0.02 + passes * 0.06 / networks
    found = forecast(rates, work_left(CONFIG, 50, 32, networks)).evaluation
    assert seconds < found < seconds + 0.06 * seconds  # and some images are decoded again


def test_few_images_are_decoded_again_as_often_as_there_are():
    few = replace(CONFIG, evaluation=EvaluationConfig(num_captions=5, samples_per_caption=2))
    rates = Rates(iteration=1.0, draw=1.0, score=0.0)
    assert forecast(rates, work_left(few, 50, 32, 3)).evaluation == pytest.approx(20 + 20 / 4)


def test_without_an_evaluation_only_training_is_told():
    config = replace(CONFIG, evaluation=EvaluationConfig(at_end=False))
    left = forecast(Rates(5 / 96, 0.02, 0.01, 7.0), work_left(config, 0, 32, 3))
    assert left.evaluation is None and str(left) == "4:31 left"


def test_rates_are_means_without_the_first_iteration():
    assert rates_of([]) is None
    first, others = iteration(seconds=50, rollout=40), [iteration(4.0), iteration(6.0, rollout=2.5)]
    assert rates_of([first]).iteration == pytest.approx(0.5)
    rates = rates_of([first, *others], checkpoints=[2.0, 4.0])
    assert rates == Rates(pytest.approx(10 / 200), pytest.approx(5 / 200), pytest.approx(2 / 200), 3.0)


def test_rates_are_per_image_whatever_the_batch_was():
    rates = rates_of([iteration(), iteration(2.0, images=50), iteration(8.0, images=200)])
    assert rates.iteration == pytest.approx(10 / 250)


def test_a_batch_that_was_left_out_does_not_count():
    left_out = dict.fromkeys(iteration()) | {"seconds": 1.0, "images_per_second": 100, "seconds_rollout": 1.0}
    assert rates_of([left_out]) is None
    assert rates_of([left_out, iteration()]).iteration == pytest.approx(0.05)


def test_a_guess_takes_what_has_been_measured():
    assert rough_rates({"seconds_rollout": 1.5}, 100, epochs=1) is None
    drawn = {"seconds_rollout": 1.5, "seconds_reward": 0.5}
    one, four = (rough_rates(drawn, 100, epochs).iteration for epochs in (1, 4))
    assert rough_rates(drawn, 100, 1).draw == 0.02 and 0.02 < one < four
    scored = rough_rates(drawn | {"seconds_scoring": 2.0}, 100, epochs=2)
    assert scored.score == 0.02 and scored.iteration == pytest.approx(0.02 + 0.02 + 2 * 1.5 * 0.02)


@pytest.mark.parametrize(
    "seconds, text", [(0, "0:00"), (6.2, "0:07"), (59.5, "1:00"), (200, "3:20"), (3725, "1:02:05")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_what_the_progress_bar_says():
    assert str(Forecast(200, 110)) == "3:20 left, 5:10 with evaluation"
    assert str(Forecast(200, None, rough=True)) == "about 3:20 left"


# --- the progress bar

TRAINING_ALONE = replace(CONFIG, num_iterations=4, evaluation=EvaluationConfig(at_end=False))
# Half a second an image, 96 images an iteration; 32 samples a checkpoint at 0.02 + 0.01 seconds.
SLOW, FAST = iteration(seconds=50), iteration(seconds=5)


def shown(capsys) -> str:
    """The newest state of the bar."""
    return capsys.readouterr().err.replace("\r", "\n").rstrip().split("\n")[-1]


def test_the_bar_of_a_run_from_start_to_end(capsys, monkeypatch):
    seconds = iter([100.0, 103.0])
    monkeypatch.setattr(progress_bar.time, "perf_counter", lambda: next(seconds))
    with ProgressBar(TRAINING_ALONE, [], samples=32, networks=3) as bar:
        assert (line := shown(capsys)).startswith("PPO 0/4 ") and "left" not in line
        bar.after_phase({"seconds_rollout": 0.1}, 32)
        assert "left" not in shown(capsys)
        bar.after_phase({"seconds_rollout": 0.24, "seconds_reward": 0.08}, 32)
        # 0.01 s to draw, 0.008 to score, 0.012 to learn; then 32 samples to draw and score.
        assert " about 0:13 left" in shown(capsys)
        bar.finished(SLOW)
        assert " 2:25 left" in (line := shown(capsys)) and "PPO 1/4 " in line and "about" not in line
        bar.finished(FAST)
        assert " 0:11 left" in shown(capsys)
        bar.after_phase({"seconds_rollout": 9.0, "seconds_reward": 9.0}, 32)
        bar.finished(FAST)
        assert " 0:06 left" in shown(capsys)
        bar.finished(FAST)
        assert " 0:01 left" in (line := shown(capsys)) and "PPO 4/4 " in line
        with bar.writing_checkpoint():
            pass
        assert " 0:00 left" in shown(capsys)
    assert bar.checkpoints == [3.0]


def test_a_resumed_run_knows_from_the_start_and_then_believes_this_machine(capsys):
    with ProgressBar(TRAINING_ALONE, [SLOW, FAST], samples=32, networks=3) as bar:
        assert " 0:11 left" in (line := shown(capsys)) and "PPO 2/4 " in line and "about" not in line
        bar.after_phase({"seconds_rollout": 9.0, "seconds_reward": 9.0}, 96)
        bar.finished(iteration(seconds=20))
        assert " 0:21 left" in shown(capsys)


@pytest.mark.parametrize("objective, name", [("grpo", "GRPO"), ("online_dpo", "ONLINE DPO")])
def test_the_bar_names_the_objective(objective, name, capsys):
    arguments = ["--objective", objective, "--num_iterations", "4"]
    with ProgressBar(parse_command_line(arguments, "train", "")[0], [], samples=32, networks=3):
        assert shown(capsys).startswith(f"{name} 0/4 ")


@pytest.mark.parametrize("at_end", [True, False])
def test_the_evaluation_is_told_if_there_is_one(at_end, capsys):
    config = replace(TRAINING_ALONE, evaluation=EvaluationConfig(at_end=at_end))
    with ProgressBar(config, [FAST], samples=32, networks=3):
        assert ("with evaluation" in shown(capsys)) is at_end


@pytest.mark.parametrize("every", [1, 3, 7, 100])
@pytest.mark.parametrize("last", [1, 6, 20, 21])
def test_checkpoints_left_are_those_that_a_loop_counts(every, last):
    config = replace(TRAINING_ALONE, num_iterations=last, checkpoint_every=every)
    for iteration in range(last + 1):
        for saved in (True, False):
            due = [n for n in range(iteration + saved, last + 1) if n % every == 0 or n == last]
            assert work_left(config, iteration, 1, 1, saved).checkpoints == len(due)
