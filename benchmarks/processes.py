"""Seconds and bytes of each phase of an iteration, in one process and in several, on this machine's CPU.

    python benchmarks/processes.py                      # the built-in world's default run, 1 and 2 processes
    python benchmarks/processes.py --processes 1 2 3 --iterations 5

Each row is the mean of the iterations after the first one, of the first process. Bytes are what it has sent,
as the operating system counts them on its connections (Linux only). Each process computes on one thread.
CPU seconds stand beside wall seconds, as the machine may be shared.
"""

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

PHASES = ("rollout", "reward", "scoring", "update")
BYTES_ACKED = 120
"""Where Linux's `struct tcp_info` counts the bytes that have arrived, an unsigned 64-bit number."""


def bytes_sent() -> int:
    """What this process has sent over all of its TCP connections that are open."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:  # closed since, or not of TCP
            continue
        if len(info) >= BYTES_ACKED + 8:
            total += struct.unpack_from("Q", info, BYTES_ACKED)[0]
    return total


def measure(iterations: int, shard: str, trainable: str) -> dict[str, list[float]]:
    """Means of wall seconds, CPU seconds and bytes of each phase; runs in each process of a team."""
    import torch

    from dalle_ppo.base.distributed import form_team
    from dalle_ppo.base.team import ALONE
    from dalle_ppo.build.trainer import build_trainer
    from dalle_ppo.config.actor import ActorConfig
    from dalle_ppo.config.settings import Config
    from dalle_ppo.config.update import UpdateConfig
    from dalle_ppo.runs.metrics import SilentWriter
    from dalle_ppo.training.iteration_metrics import Stopwatch

    torch.set_num_threads(1)
    size = int(os.environ["WORLD_SIZE"])
    team = form_team(int(os.environ["RANK"]), size) if size > 1 else ALONE
    config = Config(actor=ActorConfig(trainable=trainable), update=UpdateConfig(shard=shard))
    spent: dict[str, list[tuple[float, float, int]]] = {phase: [] for phase in PHASES}
    original = Stopwatch.phase

    @contextmanager
    def phase(watch: Stopwatch, name: str):
        before = time.perf_counter(), time.process_time(), bytes_sent()
        with original(watch, name):
            yield
        after = time.perf_counter(), time.process_time(), bytes_sent()
        spent[name].append(tuple(b - a for a, b in zip(before, after, strict=True)))

    Stopwatch.phase = phase
    trainer = build_trainer(config, Path("unused"), team)
    for _ in range(iterations):
        trainer.iterate(SilentWriter())
    team.gather(None)
    team.close()
    if size > 1:
        team.watch.leave()
    kept = {name: rows[1:] for name, rows in spent.items()}
    return {
        name: [sum(column) / len(rows) for column in zip(*rows, strict=True)] for name, rows in kept.items()
    }


def run(processes: int, iterations: int, shard: str, trainable: str) -> dict[str, list[float]]:
    """What the first of some processes measures."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    command = [sys.executable, __file__, "--measure", shard, "--trainable", trainable]
    command += ["--iterations", str(iterations)]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | address | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit("a process failed")
    return json.loads(outputs[0].splitlines()[-1])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--trainable", default="cross_keys_values")
    parser.add_argument("--measure", metavar="SHARD", help="measure in this process, one of several")
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(a.iterations, a.measure, a.trainable)))
        return
    print("| processes | shard | number | " + " | ".join(PHASES) + " |\n|---|---|---|---|---|---|---|")
    for processes in a.processes:
        for shard in ("none", "full") if processes > 1 else ("none",):
            found = run(processes, a.iterations, shard, a.trainable)
            for place, (name, unit) in enumerate((("wall s", 1), ("CPU s", 1), ("MB sent", 1e6))):
                cells = " | ".join(f"{found[phase][place] / unit:.2f}" for phase in PHASES)
                print(f"| {processes} | {shard} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
