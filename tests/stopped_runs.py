"""Tiny runs that are stopped, killed or let down by a disk, and what must be equal afterwards."""

from pathlib import Path

from tiny_trainer import TINY_CONFIG, changed, tiny_trainer

from dalle_ppo.runs.checkpoints import latest_checkpoint, load_checkpoint
from dalle_ppo.runs.metrics import read_metrics
from dalle_ppo.training.trainer import Trainer

SETTINGS = {"num_iterations": 4, "checkpoint_every": 2, "evaluation.num_captions": 2}


def trainer_of(run_dir: Path, resume: bool = False, **settings) -> Trainer:
    names = {name.replace("__", "."): value for name, value in settings.items()}
    trainer = tiny_trainer(changed(TINY_CONFIG, SETTINGS | names), run_dir)
    if resume:
        trainer.load(load_checkpoint(latest_checkpoint(run_dir)))
    return trainer


def result(run_dir: Path) -> dict:
    """What must be equal: everything saved, the numbers, the pictures, and what TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    timed = ("seconds", "images_per_second", "memory")
    records = read_metrics(run_dir / "metrics.jsonl")
    checkpoint = load_checkpoint(latest_checkpoint(run_dir))
    events = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0, "images": 0})
    events.Reload()
    shown = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not any(word in tag for word in timed)
    }
    return {
        "metrics": [{k: v for k, v in r.items() if not k.startswith(timed)} for r in records],
        "state": checkpoint.state,
        "weights": {
            f"{group} {name}": value.numpy().tobytes()
            for group, tensors in checkpoint.tensors.items()
            for name, value in tensors.items()
        },
        "pictures": {path.name: path.read_bytes() for path in (run_dir / "samples").iterdir()},
        "board": shown,
        "board pictures": [
            (e.step, e.encoded_image_string) for tag in events.Tags()["images"] for e in events.Images(tag)
        ],
    }


def at_call(monkeypatch, owner, name: str, count: int, action, after: bool = False) -> None:
    """Does something at the n-th call of a function, before it or after it."""
    original, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(name)
        if not after and len(calls) == count:
            action()
        returned = original(*args, **kwargs)
        if after and len(calls) == count:
            action()
        return returned

    monkeypatch.setattr(owner, name, call)


def assert_same(found: dict, wanted: dict) -> None:
    for part, value in wanted.items():
        if isinstance(value, dict):
            different = [name for name in value if found[part].get(name) != value[name]]
            assert not different, (part, different)
        assert found[part] == value, part
