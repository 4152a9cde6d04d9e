"""A run's folder: what is refused, what is removed, where a resumed run goes on."""

import pytest
import torch

from dalle_ppo.runs import folder as folder_module
from dalle_ppo.runs.checkpoints import save_checkpoint
from dalle_ppo.runs.folder import prepare_run_dir, sole_writer


def make_run(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "samples").mkdir()
    (folder / "notes.txt").write_text("mine")
    save_checkpoint(folder, 5, {"policy": {"w": torch.ones(3, 2)}}, {}, keep=3)
    return folder


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_fresh_folder_is_made_and_foreign_files_are_left(tmp_path):
    assert prepare_run_dir(tmp_path / "runs" / "a") is None
    assert (tmp_path / "runs" / "a").is_dir()
    (tmp_path / "runs" / "a" / "log.txt").write_text("tee")
    assert prepare_run_dir(tmp_path / "runs" / "a", overwrite=True) is None
    assert contents(tmp_path / "runs" / "a") == ["log.txt"]


def test_a_folder_with_a_run_is_refused_untouched(tmp_path):
    run = make_run(tmp_path / "a")
    before = contents(run)
    with pytest.raises(ValueError, match=r"--resume.*--overwrite"):
        prepare_run_dir(run)
    with pytest.raises(ValueError, match="exclude"):
        prepare_run_dir(run, resume=True, overwrite=True)
    assert contents(run) == before


def test_overwrite_removes_only_what_a_run_writes(tmp_path):
    run = make_run(tmp_path / "a")
    outside = tmp_path / "pictures"
    outside.mkdir()
    (outside / "keep.png").write_text("x")
    (run / "samples").rmdir()
    (run / "samples").symlink_to(outside)
    prepare_run_dir(run, overwrite=True)
    assert contents(run) == ["notes.txt"] and contents(outside) == ["keep.png"]


@pytest.mark.parametrize(
    "files",
    [
        ["samples/cat.png"],
        ["config.yaml", "samples/cat.png"],
        ["config.yaml", "checkpoints/model.pt"],
        ["config.yaml", "metrics.jsonl", "checkpoints/step_000001/a", "checkpoints/mine"],
    ],
)
def test_overwrite_never_touches_what_is_no_run(tmp_path, files):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    for flags in ({"overwrite": True}, {"resume": True}, {}):
        with pytest.raises(ValueError, match="run_dir"):
            prepare_run_dir(tmp_path, **flags)
    assert contents(tmp_path) == before


def test_resume(tmp_path):
    run = make_run(tmp_path / "a")
    assert prepare_run_dir(run, resume=True) == run / "checkpoints" / "step_000005"
    (run / "checkpoints" / "step_000005" / "state.json").unlink()
    with pytest.warns(UserWarning, match="step_000005"), pytest.raises(ValueError, match="is complete"):
        prepare_run_dir(run, resume=True)
    (run / "checkpoints" / "step_000005").rename(run / "checkpoints" / ".step_000005.new")
    assert prepare_run_dir(run, resume=True) is None  # killed during its first save
    with pytest.raises(ValueError, match="no run to resume"):
        prepare_run_dir(tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()


def test_run_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="run_dir"):
            prepare_run_dir(path)


def test_halves_of_files_that_a_kill_left_are_removed_and_nothing_else(tmp_path):
    halves = (
        ".metrics.17.new.jsonl",
        "samples/.step_000001.17.new.png",
        "evaluation/batches/a/.000001.17.new.npz",
    )
    others = (
        ".lock",
        ".gitignore",
        "notes.new.txt",
        "samples/x.17.new.png",
        "preferences/images/.a.17.new.png",
    )
    for name in (*halves, *others):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("x")
    with sole_writer(tmp_path / "run"):
        left = contents(tmp_path / "run")
        assert all(name not in left for name in halves) and all(name in left for name in others)


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_removal_that_was_interrupted_can_be_done_again(kept, tmp_path, monkeypatch):
    """Killed after some of the entries: --overwrite goes on, and the folder is never a dead end."""
    run, removed = make_run(tmp_path / "a"), []
    remove = folder_module._remove

    def interrupted(path):
        if len(removed) == kept:
            raise KeyboardInterrupt
        removed.append(path.name)
        remove(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(folder_module, "_remove", interrupted)
        prepare_run_dir(run, overwrite=True)
    prepare_run_dir(run, overwrite=True)
    assert contents(run) == ["notes.txt"]


def test_a_run_that_was_killed_before_anything_but_its_settings_was_written_is_resumed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert prepare_run_dir(tmp_path) is None, "killed before the settings: an empty folder"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert prepare_run_dir(tmp_path, resume=True) is None
    assert prepare_run_dir(tmp_path, overwrite=True) is None and contents(tmp_path) == []
