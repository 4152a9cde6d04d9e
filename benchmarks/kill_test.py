"""Kills runs at random moments, resumes them, and compares them bit for bit with runs that nobody killed.

    python benchmarks/kill_test.py [--kills 60]

Each kill is a SIGKILL from outside, at a random moment of a random phase of a tiny run of the built-in world:
rollout, reward, update, the writing of a checkpoint, evaluation or report. After up to five kills a run is
resumed until it is done. Then its weights, optimisers, metrics.jsonl, TensorBoard (scalars, histograms and
pictures, as a reader sees them), samples and evaluation must equal those of a run that was left alone; times
and memory are set aside. The settings change from run to run: see `VARIANTS`.

Runs are forks of this process, which has imported everything, so that a run starts in a second (Linux).
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

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
LIMIT = 600.0


@dataclass(frozen=True)
class Kill:
    """A moment: this share of the way through the n-th time that a phase is entered."""

    phase: str
    occurrence: int
    share: float


def arguments(run_dir: Path, variant: str, iterations: int | None = None) -> list[str]:
    """Command line of a run."""
    settings = SETTINGS | VARIANTS[variant] | ({"num_iterations": iterations} if iterations else {})
    settings["run_dir"] = run_dir
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def commands(run_dir: Path, variant: str, alone: bool = False) -> list[list[str]]:
    """Command lines that one after the other make a run; left alone, the extended one is made in one go."""
    if variant != "extended":
        return [arguments(run_dir, variant)]
    if alone:
        return [arguments(run_dir, variant, 4)]
    return [arguments(run_dir, variant), ["--run_dir", str(run_dir), "--resume", "--num_iterations", "4"]]


def start(argv: list[str], log: Path) -> tuple[int, int]:
    """Forks a process that runs `dalle_ppo.train`; returns its id and where it reports its phases."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    os.close(reader)
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        report_phases(writer)
        from dalle_ppo import train
        from dalle_ppo.config.command_line import run_main

        sys.argv = ["train", *argv]
        run_main(train.main)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def report_phases(writer: int) -> None:
    """Makes the functions of `PHASES` write a line as they begin and end."""
    import importlib

    def reporting(phase: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            os.write(writer, f"+{phase}\n".encode())
            try:
                return function(*args, **kwargs)
            finally:
                os.write(writer, f"-{phase}\n".encode())

        return call

    for phase, place in PHASES.items():
        module_name, _, name = place.partition(":")
        module = importlib.import_module(module_name)
        setattr(module, name, reporting(phase, getattr(module, name)))


def follow(
    child: int, reader: int, kill: Kill | None, spans: dict[str, float]
) -> tuple[int, str | None, list]:
    """Watches a run, and kills it at the moment that `kill` names.

    Args:
        child: its process id.
        reader: where it reports.
        kill: when; None leaves it alone.
        spans: seconds that a phase takes.

    Returns:
        Its exit code, negative if it was killed; the phase it was killed in; when phases began and ended.
    """
    events, begun, rest, at, where = [], Counter(), b"", None, "between phases"
    killed = None
    deadline = time.monotonic() + LIMIT
    while True:
        now = time.monotonic()
        if now > deadline or (at is not None and now >= at):
            os.kill(child, signal.SIGKILL)
            killed = where if now <= deadline else "too slow"
            at, deadline = None, now + LIMIT
        wait = min(deadline, at if at is not None else deadline) - time.monotonic()
        if not select.select([reader], [], [], max(0.0, wait))[0]:
            continue
        received = os.read(reader, 4096)
        if not received:
            break
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            mark, phase = chr(line[0]), line[1:].decode()
            events.append((time.monotonic(), mark, phase))
            begun[phase] += mark == "+"
            where = phase if mark == "+" else f"after {phase}"
            if kill and mark == "+" and (phase, begun[phase]) == (kill.phase, kill.occurrence) and not killed:
                at = time.monotonic() + kill.share * spans.get(phase, 0.05)
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), killed, events


def spans_of(events: list[tuple[float, str, str]]) -> tuple[dict[str, float], Counter]:
    """Mean seconds of each phase, and how often it was entered."""
    begun: dict[str, float] = {}
    seconds, count = Counter(), Counter()
    for when, mark, phase in events:
        if mark == "+":
            begun[phase] = when
            count[phase] += 1
        elif phase in begun:
            seconds[phase] += when - begun.pop(phase)
    return {phase: seconds[phase] / count[phase] for phase in count}, count


def run_to_the_end(
    run_dir: Path, variant: str, kills: list[Kill], spans: dict[str, float]
) -> tuple[list[str], list]:
    """Makes a run, killing it on the way; returns where it was killed and the events of its last process.

    Raises:
        RuntimeError: a resumed run failed, with the end of what it printed.
    """
    log, landed, left, events = run_dir.with_suffix(".log"), [], list(kills), []
    for argv in commands(run_dir, variant, alone=not kills):
        while True:
            kill = left.pop(0) if left else None
            child, reader = start(argv, log)
            code, killed, events = follow(child, reader, kill, spans)
            if killed is not None and code < 0:
                landed.append(killed)
            elif code:
                raise RuntimeError(f"{variant}, killed in {landed}: exit {code}\n{log.read_text()[-2000:]}")
            else:
                break
            if (run_dir / "config.yaml").is_file() and "--resume" not in argv:
                argv = [*argv, "--resume"]
    return landed, events


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


def differences(alone: dict[str, object], killed: dict[str, object]) -> list[str]:
    """Names of what is not equal."""
    return [
        f"{name}: {alone.get(name)!r:.200} != {killed.get(name)!r:.200}"
        for name in sorted(alone.keys() | killed.keys())
        if alone.get(name) != killed.get(name)
    ]


def draw_kills(rng: random.Random, entered: Counter, count: int) -> list[Kill]:
    """Random moments: every phase as often as any other, whatever time it takes.

    In the order of the phases, as a run that has got to its evaluation does not train again.
    """
    phases = sorted(rng.choices(sorted(entered), k=count), key=list(PHASES).index)
    # A resumed process enters each phase less often than the first did.
    most = [entered[phase] // 2 if number == 0 else 1 for number, phase in enumerate(phases)]
    return [
        Kill(phase, rng.randint(1, max(1, limit)), rng.random())
        for phase, limit in zip(phases, most, strict=True)
    ]


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
    import torch
    from torch.utils.tensorboard import SummaryWriter

    import dalle_ppo.build.captions
    import dalle_ppo.build.judges
    import dalle_ppo.build.measures
    import dalle_ppo.build.trainer
    import dalle_ppo.build.trial
    import dalle_ppo.report.page
    import dalle_ppo.runs.tensorboard

    assert all((dalle_ppo, open_clip, SummaryWriter))
    torch.set_num_threads(1)


def kill_and_compare(kills: int, seed: int, folder: Path, names: list[str]) -> tuple[int, list[str], Counter]:
    """Kills runs `kills` times; returns how many were killed, what differed, and where kills landed."""
    rng, alone, faults, landed = random.Random(seed), {}, [], Counter()
    turn = 0
    while landed.total() < kills and turn < 10 * kills:
        variant = names[turn % len(names)]
        if variant not in alone:
            _, events = run_to_the_end(folder / f"alone_{len(alone)}", variant, [], {})
            alone[variant] = (contents(folder / f"alone_{len(alone)}"), *spans_of(events))
        expected, spans, entered = alone[variant]
        run_dir = folder / f"killed_{turn}"
        turn += 1
        planned = draw_kills(rng, entered, min(KILLS_PER_RUN, kills - landed.total()))
        try:
            where, _ = run_to_the_end(run_dir, variant, planned, spans)
            found = differences(expected, contents(run_dir))
        except RuntimeError as error:
            where, found = [], [str(error)]
        landed.update(where)
        faults += [f"{variant}, killed in {', '.join(where)}: {line}" for line in found]
        print(f"{landed.total():3} kills: {variant}, in {where}: {len(found)} differences", flush=True)
        if not found:
            shutil.rmtree(run_dir)
    return landed.total(), faults, landed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="which of them, separated by commas")
    parser.add_argument("--keep", type=Path, help="a folder for the runs; runs that differ stay there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        hub = captions_hub(folder / "hub") if "hub" in args.variants else contextlib.nullcontext()
        with hub:
            warm_up()
            done, faults, landed = kill_and_compare(args.kills, args.seed, folder, args.variants.split(","))
    print("\n".join(faults))
    print(f"{done} kills: {', '.join(f'{count} in {name}' for name, count in sorted(landed.items()))}")
    print(f"{len(faults)} differences" if faults else "every run equals the one that was left alone")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
