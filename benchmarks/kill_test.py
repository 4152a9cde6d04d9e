"""Kills runs at random moments, resumes them, and compares them bit for bit with runs that nobody killed.

    python benchmarks/kill_test.py [--kills 60] [--variants lora,labelling]
    python benchmarks/kill_test.py --each_write 1 --variants ppo

Each kill is a SIGKILL from outside, at a random moment of a random phase of a tiny run of the built-in world:
rollout, reward, update, the writing of a checkpoint, evaluation or report. After up to five kills a run is
resumed until it is done. Then its weights, optimisers, metrics.jsonl, TensorBoard (scalars, histograms and
pictures, as a reader sees them), samples and evaluation must equal those of a run that was left alone; times
and memory are set aside. The settings change from run to run: see `VARIANTS`. In "two processes" either one
is killed, and the other must end by itself within 30 seconds. In "labelling" a model answers into a store of
preferences; its answers and pictures must be equal, and each kill may cost one question that is asked again.
"aligning" makes two rounds of labels, reward model and training.
`--each_write N` kills before every N-th time that the run opens a file for writing, renames, removes, makes
or flushes one, instead of at random moments.

Runs are forks of this process, which has imported everything, so that a run starts in a second (Linux).
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from kill_align import Aligning
from kill_labels import Labelling
from killing import Command, Writes, differences, draw_kills, run_to_the_end, spans_of

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "seed": 5, "num_iterations": 4, "checkpoint_every": 2, "device": "cpu",
    "rollout.rollout_batch_size": 4, "update.minibatch_size": 2, "update.microbatch_size": 2,
    "actor.learning_rate": 1e-3, "actor.trainable": "all",
    "evaluation.num_captions": 4, "evaluation.batch_size": 2, "keep_best": "reward_mean",
}  # fmt: skip
VARIANTS: dict[str, dict[str, object]] = {
    "ppo": {},
    "adaptive kl": {"kl.target": 2.0, "actor.entropy_coef": 0.0},
    "extended": {"actor.schedule": "constant", "num_iterations": 2},
    "replay": {"objective": "dpok"},
    "rloo": {"credit.advantage": "rloo", "rollout.samples_per_caption": 2},
    "hub": {"captions.source": "hub:our/captions", "evaluation.num_captions": 3},
    "lora": {"actor.adapter": "lora", "critic.adapter": "lora", "actor.learning_rate": 1e-2},
    "two processes": {},
    "labelling": {},
    "aligning": {},
}
"""What differs from `SETTINGS`. "extended" goes on from 2 to 4 iterations and must equal 4 in one go."""
PHASES = {
    "rollout": "dalle_ppo.training.trainer:collect",
    "reward": "dalle_ppo.training.trainer:shared_reward",
    "scoring": "dalle_ppo.training.trainer:shared_score_passes",
    "update": "dalle_ppo.training.trainer:run_update",
    "checkpoint": "dalle_ppo.training.trainer:save_checkpoint",
    "removal": "dalle_ppo.training.trainer:prune_checkpoints",
    "evaluation": "dalle_ppo.evaluation.sides:evaluate",
    "board": "dalle_ppo.runs.tensorboard:write_evaluation",
    "report": "dalle_ppo.report.page:write_report",
}
"""Where a function's beginning and end are reported to the killer."""
UNTIMED = ("seconds", "images_per_second", "memory_gb")
KILLS_PER_RUN = 5


class Training:
    """Runs `dalle_ppo.train` with the settings of a variant."""

    phases = PHASES

    def __init__(self, variant: str) -> None:
        self.variant, self.size = variant, 2 if variant == "two processes" else 1

    def commands(self, run_dir: Path, alone: bool) -> list[Command]:
        """What one after the other makes a run; left alone, the extended one is made in one go."""
        settings = SETTINGS | VARIANTS[self.variant] | {"run_dir": run_dir}
        extended = self.variant == "extended"
        if extended and alone:
            settings["num_iterations"] = 4
        argv = tuple(text for name, value in settings.items() for text in (f"--{name}", str(value)))
        commands = [Command("train", argv, PHASES, self.size)]
        if extended and not alone:
            more = ("--run_dir", str(run_dir), "--resume", "--num_iterations", "4")
            commands.append(Command("train", more, PHASES, self.size))
        return commands

    def again(self, command: Command) -> Command:
        """The command that goes on after a kill; one killed before it has made its run is simply repeated."""
        run_dir = Path(command.argv[command.argv.index("--run_dir") + 1])
        if (run_dir / "config.yaml").is_file() and "--resume" not in command.argv:
            return replace(command, argv=(*command.argv, "--resume"))
        return command

    def contents(self, run_dir: Path, kills: int) -> dict[str, object]:
        """Everything that must be equal, by name."""
        return contents(run_dir)


def contents(run_dir: Path) -> dict[str, object]:
    """Everything that must be equal, by name."""
    import numpy as np
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    newest = max((run_dir / "checkpoints").glob("step_*"))
    found: dict[str, object] = {"checkpoints": sorted(os.listdir(run_dir / "checkpoints"))}
    for path in sorted(newest.glob("*.safetensors")):
        for name, array in load_file(path).items():
            found[f"{path.name} {name}"] = hashlib.sha256(array.tobytes()).hexdigest()
    found["state"] = json.loads((newest / "state.json").read_text())["state"]
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    found["metrics"] = [
        {name: value for name, value in json.loads(line).items() if not name.startswith(UNTIMED)}
        for line in lines
    ]
    for path in sorted((run_dir / "samples").iterdir()):
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    found["evaluation"] = json.loads((run_dir / "evaluation.json").read_text())
    table = pq.read_table(run_dir / "evaluation" / "images.parquet")
    found["images.parquet"] = repr(table.to_pydict())
    with np.load(run_dir / "evaluation" / "thumbnails.npz") as stored:
        found |= {f"thumbnails {name}": hashlib.sha256(stored[name].tobytes()).hexdigest() for name in stored}
    found["report"] = (run_dir / "report.html").is_file()
    found["left over"] = sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob(".*"))
    return found | board(run_dir)


def board(run_dir: Path) -> dict[str, object]:
    """What TensorBoard shows, by kind and tag: steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0, "images": 0, "histograms": 0})
    events.Reload()
    tags, shown = events.Tags(), {}
    for tag in tags["scalars"]:
        if not tag.endswith(UNTIMED) and "seconds" not in tag:
            shown[f"board {tag}"] = [(e.step, e.value) for e in events.Scalars(tag)]
    for tag in tags["images"]:
        pictures = [(e.step, hashlib.sha256(e.encoded_image_string).hexdigest()) for e in events.Images(tag)]
        shown[f"board {tag}"] = pictures
    for tag in tags["histograms"]:
        shown[f"board {tag}"] = [(e.step, repr(e.histogram_value)) for e in events.Histograms(tag)]
    return shown


@contextlib.contextmanager
def captions_hub(folder: Path) -> Iterator[None]:
    """Serves the captions of the variant "hub" here, to the real client; call it before that is imported."""
    sys.path.insert(0, str(ROOT / "tests"))
    import pyarrow as pa
    import pyarrow.parquet as pq
    from fake_hub import FakeHub

    folder.mkdir()
    for number in range(2):
        texts = [f"a red boat number {number} {i}" for i in range(60)]
        pq.write_table(pa.table({"caption": texts}), folder / f"{number}.parquet")
    hub = FakeHub(folder, "our/captions")
    os.environ |= {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "0"}
    try:
        yield
    finally:
        hub.close()


def warm_up() -> None:
    """Imports what a run imports, so that its forks start fast; computes nothing, as threads do not fork."""
    import open_clip
    import openai
    import torch
    from torch.utils.tensorboard import SummaryWriter

    import dalle_ppo.build.alignment
    import dalle_ppo.build.captions
    import dalle_ppo.build.judges
    import dalle_ppo.build.labels
    import dalle_ppo.build.measures
    import dalle_ppo.build.trainer
    import dalle_ppo.build.trial
    import dalle_ppo.report.page
    import dalle_ppo.runs.tensorboard

    assert all((dalle_ppo, open_clip, openai, SummaryWriter))
    torch.set_num_threads(1)


def subject_of(variant: str, folder: Path) -> Training | Labelling | Aligning:
    """What a variant kills; labelling needs a policy, which is trained for one iteration."""
    if variant == "aligning":
        own = {name: value for name, value in SETTINGS.items() if name != "num_iterations"}
        return Aligning(own, contents)
    if variant != "labelling":
        return Training(variant)
    policy = folder / "policy"
    settings = SETTINGS | {"num_iterations": 1, "evaluation.at_end": "false", "run_dir": policy}
    argv = tuple(text for name, value in settings.items() for text in (f"--{name}", str(value)))
    run_to_the_end([Command("train", argv, {})], folder / "policy.log", [], {}, lambda command: command)
    return Labelling(policy)


def kill_and_compare(kills: int, seed: int, folder: Path, names: list[str]) -> tuple[int, list[str], Counter]:
    """Kills runs `kills` times; returns how many were killed, what differed, and where kills landed."""
    rng, alone, faults, landed = random.Random(seed), {}, [], Counter()
    turn = 0
    while landed.total() < kills and turn < 10 * kills:
        variant = names[turn % len(names)]
        if variant not in alone:
            subject, run_dir = subject_of(variant, folder), folder / f"alone_{len(alone)}"
            commands = subject.commands(run_dir, True)
            starts = run_to_the_end(commands, run_dir.with_suffix(".log"), [], {}, subject.again)
            alone[variant] = (subject, subject.contents(run_dir, 0), *spans_of(starts[-1].events))
        subject, expected, spans, entered = alone[variant]
        run_dir = folder / f"killed_{turn}"
        turn += 1
        count = min(KILLS_PER_RUN, kills - landed.total())
        planned = draw_kills(rng, entered, count, list(subject.phases), subject.size)
        where, slowest, log = [], 0.0, run_dir.with_suffix(".log")
        try:
            starts = run_to_the_end(subject.commands(run_dir, False), log, planned, spans, subject.again)
            where = [ended.killed for ended in starts if ended.killed]
            slowest = max(ended.alone for ended in starts)
            found = differences(expected, subject.contents(run_dir, len(where)))
        except RuntimeError as error:
            found = [str(error)]
        landed.update(where)
        faults += [f"{variant}, killed in {', '.join(where)}: {line}" for line in found]
        after = f", others ended after {slowest:.1f} s" if subject.size > 1 else ""
        print(f"{landed.total():3} kills: {variant}, in {where}: {len(found)} differences{after}", flush=True)
        if not found:
            shutil.rmtree(run_dir)
    return landed.total(), faults, landed


def kill_before_writes(every: int, folder: Path, variant: str) -> tuple[int, list[str], Counter]:
    """Kills a run before each of its writes to files; returns the same as `kill_and_compare`."""
    subject, faults, landed = subject_of(variant, folder), [], Counter()

    def go_on(command: Command) -> Command:
        return subject.again(replace(command, writes=None))

    def attempt(name: str, number: int) -> tuple[dict[str, object], list[str]]:
        run_dir, writes = folder / name, folder / f"{name}.writes"
        first, *others = subject.commands(run_dir, number == 0)
        commands = [replace(first, writes=Writes(run_dir, number, writes)), *others]
        starts = run_to_the_end(commands, run_dir.with_suffix(".log"), [], {}, go_on)
        landed.update(one.killed for one in starts if one.killed)
        return subject.contents(
            run_dir, sum(one.killed is not None for one in starts)
        ), writes.read_text().split("\n")[:-1]

    expected, happened = attempt("alone", 0)
    for number in range(1, len(happened) + 1, every):
        name = f"killed_{number}"
        try:
            found = differences(expected, attempt(name, number)[0])
        except RuntimeError as error:
            found = [str(error)]
        faults += [f"{variant}, killed before {number} ({happened[number - 1]}): {line}" for line in found]
        print(f"{number:3} of {len(happened)}, {happened[number - 1]}: {len(found)} differences", flush=True)
        if not found:
            shutil.rmtree(folder / name)
    return landed.total(), faults, landed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="which of them, separated by commas")
    parser.add_argument("--each_write", type=int, metavar="N", help="kill before every N-th write to a file")
    parser.add_argument("--keep", type=Path, help="a folder for the runs; runs that differ stay there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        hub = captions_hub(folder / "hub") if "hub" in args.variants else contextlib.nullcontext()
        with hub:
            warm_up()
            names = args.variants.split(",")
            if args.each_write:
                results = [kill_before_writes(args.each_write, folder, name) for name in names]
                done, landed = sum(r[0] for r in results), sum((r[2] for r in results), Counter())
                faults = [line for r in results for line in r[1]]
            else:
                done, faults, landed = kill_and_compare(args.kills, args.seed, folder, names)
    print("\n".join(faults))
    print(f"{done} kills: {', '.join(f'{count} in {name}' for name, count in sorted(landed.items()))}")
    print(f"{len(faults)} differences" if faults else "every run equals the one that was left alone")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
