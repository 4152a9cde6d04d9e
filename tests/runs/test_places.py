"""Paths that are not a run's folder but tell which one is meant: the error names it and what to type."""

import os
import shlex
import shutil

import pytest

from dalle_ppo import evaluate, export, generate, train
from dalle_ppo.runs.folder import check_run_dir
from dalle_ppo.runs.places import checkpoint_of, enclosing_run, quoted, refuse_wrong_path, runs_in


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs below `runs`, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a", "b")):
        run = tmp_path / "runs" / name
        (run / "checkpoints" / "step_000004").mkdir(parents=True)
        (run / "checkpoints" / "step_000004" / "state.json").write_text("{}")
        (run / "samples").mkdir()
        for file in ("config.yaml", "metrics.jsonl", "evaluation.json"):
            (run / file).write_text("")
        os.utime(run / "config.yaml", (number, number))
    return tmp_path / "runs"


INSIDE = (
    "checkpoints",
    "checkpoints/step_000004",
    "checkpoints/step_000004/state.json",
    "checkpoints/step_000099",
    "config.yaml",
    "evaluation.json",
    "samples/",
)


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_path_inside_a_run_names_the_run(runs, inside, absolute):
    base = str(runs) if absolute else "runs"
    with pytest.raises(ValueError) as error:
        refuse_wrong_path(f"{base}/a/{inside}", "run_dir", "--resume --run_dir {}")
    assert str(error.value).startswith(
        f"run_dir: {base}/a/{inside.rstrip('/')} lies inside the run {base}/a; "
    )
    assert str(error.value).endswith(f"type --resume --run_dir {base}/a")


def test_a_command_to_copy_quotes_a_folder_with_spaces(runs):
    """`shlex.split` is what a shell does with it."""
    run = runs / "it's my run"
    (runs / "a").rename(run)

    def last_words(call) -> list[str]:
        with pytest.raises(ValueError) as error:
            call()
        return shlex.split(str(error.value).rpartition("type ")[2].removesuffix(" to continue that run"))

    assert last_words(lambda: refuse_wrong_path(run / "samples", "run_dir", "{}")) == [str(run)]
    assert last_words(lambda: check_run_dir(run / "samples", resume=True)) == [
        "--resume",
        "--run_dir",
        str(run),
    ]
    assert last_words(lambda: check_run_dir(run / "samples")) == ["--resume", "--run_dir", str(run)]
    shutil.rmtree(runs / "b")
    assert last_words(lambda: refuse_wrong_path(runs, "run", "evaluate {}")) == ["evaluate", str(run)]
    command = train.how_to_go_on(run).partition("go on with: ")[2]
    assert shlex.split(command) == ["python", "-m", "dalle_ppo.train", "--run_dir", str(run), "--resume"]
    command = train.how_to_go_on(run, 2).partition("go on with: ")[2]
    assert shlex.split(command)[:3] == ["torchrun", "--nproc_per_node", "2"]


def test_from_inside_a_run(runs, monkeypatch):
    monkeypatch.chdir(runs / "a" / "checkpoints")
    assert enclosing_run("step_000004") == enclosing_run(".") == runs / "a"
    monkeypatch.chdir(runs / "a")
    assert str(enclosing_run("checkpoints")) == "."
    refuse_wrong_path(".", "run_dir", "{}")


def test_a_folder_of_runs_names_the_newest(runs):
    assert [run.name for run in runs_in(runs)] == ["b", "a"]
    with pytest.raises(
        ValueError, match=r"run: runs is not a run, but holds runs/b, runs/a; type evaluate runs/b$"
    ):
        refuse_wrong_path("runs", "run", "evaluate {}")


def test_runs_and_everything_else_pass(runs, tmp_path):
    (tmp_path / "config.yaml").write_text("not: a run's\n")
    for path in (
        "runs/a",
        "runs/a/",
        "runs/c",
        "runs/a/heir",
        "absent",
        "config.yaml",
        "mini",
        tmp_path / "x",
    ):
        refuse_wrong_path(path, "model", "{}")


def test_checkpoints_are_recognised():
    assert checkpoint_of("runs/a/checkpoints/step_000020/state.json") == 20
    assert checkpoint_of("runs/a/checkpoints") is None


def test_a_new_run_may_lie_below_another_but_not_among_its_files(runs):
    check_run_dir(runs / "a" / "heir")
    for flags in ({}, {"overwrite": True}):
        with pytest.raises(
            ValueError, match="lies inside the run runs/a; name another folder, or type --resume"
        ):
            check_run_dir("runs/a/checkpoints/new", **flags)


@pytest.mark.parametrize("inside", ["checkpoints", "checkpoints/step_000004", "config.yaml", ".."])
def test_every_command_says_what_to_type(tiny_run, tmp_path, cli, inside):
    folder = tmp_path / "runs"
    run = folder / "copy"
    shutil.copytree(tiny_run.run_dir, run)
    path = folder if inside == ".." else run / inside
    chosen = " --checkpoints 4" if "step" in inside else ""
    for main, arguments, words in (
        (train.main, ("--run_dir", path, "--resume"), f"type --resume --run_dir {quoted(run)}"),
        (
            train.main,
            ("--run_dir", tmp_path / "new", "--model.path", path),
            f"type {quoted(run)}, whose newest",
        ),
        (evaluate.main, (path,), f"type python -m dalle_ppo.evaluate {quoted(run)}{chosen}"),
        (
            generate.main,
            ("a boat", "--out", tmp_path / "a.png", "--model", path),
            f"type {quoted(run)}, whose newest",
        ),
        (
            export.main,
            (path, "--out", tmp_path / "out", "--to", "min-dalle"),
            f"type {quoted(run)}, whose newest",
        ),
    ):
        outcome = cli(main, *arguments)
        assert outcome.code == 2 and words in outcome.error, outcome.error
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]
