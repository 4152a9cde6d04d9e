"""Checkpoints are complete or absent, and resuming from one continues exactly."""

import json
import os
import random
import warnings

import numpy as np
import pytest
import torch

from dalle_ppo.base.run_format import FormatError
from dalle_ppo.runs import checkpoints
from dalle_ppo.runs.checkpoints import (
    decode_bytes,
    encode_bytes,
    flatten_optimizer,
    get_rng_state,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    restore_optimizer,
    save_checkpoint,
    set_rng_state,
)


def save(run_dir, iteration, keep=3, value=1.0):
    tensors = {"policy": {"w": torch.full((3, 2), value)}, "critic": {"v": torch.arange(4)}}
    return save_checkpoint(run_dir, iteration, tensors, {"images": iteration * 96}, keep)


def step_names(run_dir):
    return sorted(os.listdir(run_dir / "checkpoints"))


def test_checkpoint_round_trip(tmp_path):
    shared = torch.randn(6, 4)
    tensors = {
        "policy": {"a": shared, "tied": shared, "transposed": shared.T, "half": torch.randn(3).half()},
        "optimizer": {"0.step": torch.tensor(7.0), "empty": torch.zeros(0, 3)},
    }
    state = {"iteration": 40, "moments": {"mean": 0.1 + 0.2, "std": float("inf")}, "position": 2**60 + 1}
    path = save_checkpoint(tmp_path, 40, tensors, state, keep=1)
    assert path == tmp_path / "checkpoints" / "step_000040" == latest_checkpoint(tmp_path)
    assert sorted(os.listdir(path)) == ["optimizer.safetensors", "policy.safetensors", "state.json"]
    loaded = load_checkpoint(path)
    assert loaded.iteration == 40 and loaded.state == state
    for group, entries in tensors.items():
        assert loaded.tensors[group].keys() == entries.keys()
        for name, tensor in entries.items():
            read = loaded.tensors[group][name]
            assert read.dtype == tensor.dtype and torch.equal(read, tensor)


def test_keys_that_json_turns_into_text_do_not_spoil_the_hash(tmp_path):
    path = save_checkpoint(tmp_path, 1, {}, {"per_prompt": {10: 1, 9: 2}, "range": (1, 2)}, keep=1)
    assert load_checkpoint(path).state == {"per_prompt": {"10": 1, "9": 2}, "range": [1, 2]}


def test_only_the_newest_are_kept(tmp_path):
    for iteration in (9, 10, 100, 99_999):
        save(tmp_path, iteration, keep=2)
    assert step_names(tmp_path) == ["step_000100", "step_099999"]
    save(tmp_path, 1_000_000, keep=2)
    assert latest_checkpoint(tmp_path).name == "step_1000000"
    with pytest.raises(ValueError, match="keep: 0"):
        save(tmp_path, 5, keep=0)


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "state.json").write_text("{")
    save(tmp_path, 3, keep=2)
    assert step_names(tmp_path) == ["step_000001", "step_000002", "step_000003"]


def test_saving_the_same_iteration_again_replaces_it(tmp_path):
    save(tmp_path, 4, value=1.0)
    path = save(tmp_path, 4, value=2.0)
    assert load_checkpoint(path).tensors["policy"]["w"].unique().tolist() == [2.0]
    assert step_names(tmp_path) == ["step_000004"]


@pytest.mark.parametrize("target", ["save_tensors", "_file_hash", "flush", "os.replace", "Path.write_text"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, target, error):
    save(tmp_path, 10, value=1.0)

    def fail(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        if target == "os.replace":
            patch.setattr(os, "replace", fail)
        elif target == "Path.write_text":
            patch.setattr(checkpoints.Path, "write_text", fail)
        else:
            patch.setattr(checkpoints, target, fail)
        with pytest.raises(type(error)):
            save(tmp_path, 20)
    assert step_names(tmp_path) == ["step_000010"]
    assert load_checkpoint(latest_checkpoint(tmp_path)).iteration == 10


def test_a_failed_replacement_puts_the_earlier_one_back(tmp_path, monkeypatch):
    save(tmp_path, 10, value=1.0)
    real_replace = os.replace

    def fail_on_new(source, target):
        if str(source).endswith(".new"):
            raise OSError("disk full")
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", fail_on_new)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 10, value=2.0)
    assert load_checkpoint(latest_checkpoint(tmp_path)).tensors["policy"]["w"].unique().tolist() == [1.0]


def test_a_process_killed_at_any_write_leaves_a_whole_checkpoint_or_none(tmp_path):
    """A real child process that dies without clean-up at the n-th file operation."""
    for at in range(1, 12):
        run_dir = tmp_path / str(at)
        save(run_dir, 1, value=1.0)
        child = os.fork()
        if child == 0:
            countdown = [at]

            def dying(function, countdown=countdown):
                def call(*args, **kwargs):
                    countdown[0] -= 1
                    if countdown[0] == 0:
                        os._exit(9)
                    return function(*args, **kwargs)

                return call

            for name in ("save_tensors", "flush", "_file_hash"):
                setattr(checkpoints, name, dying(getattr(checkpoints, name)))
            os.replace = dying(os.replace)
            save(run_dir, 2, value=2.0)
            os._exit(0)
        os.waitpid(child, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            newest = load_checkpoint(latest_checkpoint(run_dir))
        assert newest.tensors["policy"]["w"].unique().tolist() == [float(newest.iteration)]
        save(run_dir, 3)
        assert [n for n in step_names(run_dir) if n.startswith(".")] == []


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "policy.safetensors").unlink(), "policy.safetensors"),
        (lambda folder: (folder / "state.json").unlink(), "state.json"),
        (lambda folder: (folder / "state.json").write_text("[]"), "state.json"),
        (lambda folder: (folder / "state.json").write_text(""), "state.json"),
        (lambda folder: os.truncate(folder / "critic.safetensors", 20), "critic.safetensors"),
    ],
)
def test_damaged_folders_are_named_and_passed_over(tmp_path, damage, named):
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    with pytest.warns(UserWarning, match=f"step_000002.{named}"):
        assert latest_checkpoint(tmp_path).name == "step_000001"
    with pytest.raises(ValueError, match=f"step_000002.{named}"):
        load_checkpoint(tmp_path / "checkpoints" / "step_000002")


@pytest.mark.parametrize("file", ["policy.safetensors", "state.json"])
def test_one_flipped_bit_is_noticed(tmp_path, file):
    path = save(tmp_path, 2) / file
    content = bytearray(path.read_bytes())
    at = len(content) - 1 if file != "state.json" else content.index(b": 192") + 4
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file}.*hash"):
        load_checkpoint(path.parent)


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    path, opened = save(tmp_path, 2), []
    read = checkpoints.read_tensor_file
    monkeypatch.setattr(checkpoints, "read_tensor_file", lambda file: opened.append(file.name) or read(file))
    hashed = checkpoints._file_hash
    monkeypatch.setattr(checkpoints, "_file_hash", lambda file: opened.append(file.name) or hashed(file))
    found = load_checkpoint(latest_checkpoint(tmp_path, "policy"), "policy")
    assert set(found.tensors) == {"policy"} and found.state == {"images": 192}
    assert set(opened) == {"policy.safetensors"}
    content = bytearray((path / "critic.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "critic.safetensors").write_bytes(content)
    assert set(load_checkpoint(path, "policy").tensors) == {"policy"}, "a damaged critic draws no worse"
    with pytest.raises(ValueError, match=r"critic\.safetensors.*hash"):
        load_checkpoint(path)


def test_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    with pytest.raises(ValueError, match="nothing_here"):
        load_checkpoint(tmp_path / "nothing_here")


def small_model_and_optimizer(seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.05}]
    return model, torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-5)


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()


def test_training_continues_exactly_after_a_resume(tmp_path):
    """Model, optimiser and random numbers: the resumed run ends bit-identical to the one never stopped."""
    model, optimizer = small_model_and_optimizer(1)
    train(model, optimizer, 3)
    tensors, meta = flatten_optimizer(optimizer)
    state = {"optimizer": meta, "rng": get_rng_state()}
    path = save_checkpoint(tmp_path, 3, {"policy": model.state_dict(), "optimizer": tensors}, state, keep=1)
    train(model, optimizer, 3)
    resumed, resumed_optimizer = small_model_and_optimizer(2)
    loaded = load_checkpoint(path)
    resumed.load_state_dict(loaded.tensors["policy"])
    restore_optimizer(resumed_optimizer, loaded.tensors["optimizer"], loaded.state["optimizer"])
    set_rng_state(loaded.state["rng"])
    train(resumed, resumed_optimizer, 3)
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, resumed.state_dict()[name]), name
    assert resumed_optimizer.param_groups[0]["betas"] == (0.8, 0.95)


def test_an_optimiser_of_another_model_is_refused():
    model, optimizer = small_model_and_optimizer(1)
    train(model, optimizer, 1)
    tensors, meta = flatten_optimizer(optimizer)
    other = torch.optim.AdamW([{"params": p} for p in torch.nn.Linear(3, 5).parameters()])
    with pytest.raises(ValueError, match=r"actor\.trainable"):
        restore_optimizer(other, tensors, meta)
    shapes = [[2 * size for size in p.shape] for group in optimizer.param_groups for p in group["params"]]
    other = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(shape)) for shape in shapes])
    with pytest.raises(ValueError, match="differs"):
        restore_optimizer(other, tensors, meta)


def test_all_random_states_round_trip():
    torch.randn(3), np.random.randn(3), random.gauss(0, 1)  # leaves numpy's and Python's spare normal numbers
    state = json.loads(json.dumps(get_rng_state()))
    generator = torch.Generator().manual_seed(7)
    generator_state = encode_bytes(generator.get_state())
    expected = [torch.randn(9).tolist(), np.random.randn(9).tolist(), [random.gauss(0, 1) for _ in range(9)]]
    expected_generator = torch.rand(5, generator=generator)
    set_rng_state(state)
    assert [
        torch.randn(9).tolist(),
        np.random.randn(9).tolist(),
        [random.gauss(0, 1) for _ in range(9)],
    ] == expected
    generator.set_state(decode_bytes(generator_state))
    assert torch.equal(torch.rand(5, generator=generator), expected_generator)


def test_going_back_does_not_remove_what_was_just_written(tmp_path):
    """A run restarted by hand from an earlier iteration, the later checkpoints still there."""
    save(tmp_path, 10)
    assert save(tmp_path, 5, keep=1).is_dir()
    assert step_names(tmp_path) == ["step_000005", "step_000010"]


def test_a_checkpoint_of_an_older_format_is_refused_and_not_passed_over(tmp_path, monkeypatch):
    """As a damaged one it would be passed over for one before it, with a warning."""
    save(tmp_path, 10)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "FORMAT", 1)
        old = save(tmp_path, 20)
    for read in (lambda: latest_checkpoint(tmp_path), lambda: load_checkpoint(old)):
        with pytest.raises(FormatError, match=r"step_000020.* format 1, .* use dalle_ppo 0\.1") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_replacement_that_is_killed_between_its_renames_is_undone(tmp_path):
    final = save(tmp_path, 10, value=1.0)
    final.rename(final.with_name(".step_000010.old"))
    (tmp_path / "checkpoints" / ".step_000010.new").mkdir()
    checkpoints.put_back(tmp_path / "checkpoints")
    assert load_checkpoint(latest_checkpoint(tmp_path)).tensors["policy"]["w"].unique().tolist() == [1.0]
    half = final.rename(final.with_name(".step_000010.old"))
    (half / "policy.safetensors").unlink()
    checkpoints.put_back(tmp_path / "checkpoints")
    assert latest_checkpoint(tmp_path) is None, "what is half removed does not come back"


def test_one_that_may_be_bad_does_not_cost_the_best(tmp_path):
    """The last of four calls itself the best. Until its samples are checked, the one before it stays too."""
    for iteration, best in ((20, 20), (40, 20), (60, 20), (80, 80)):
        state = {"best": {"iteration": best}}
        save_checkpoint(tmp_path, iteration, {"policy": {"w": torch.ones(1)}}, state, keep=2, spare=1)
    assert step_names(tmp_path) == ["step_000020", "step_000040", "step_000060", "step_000080"]
    prune_checkpoints(tmp_path, 80, 2)
    assert step_names(tmp_path) == ["step_000060", "step_000080"]
