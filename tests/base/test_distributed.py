"""A team of real processes, without a launcher: what one knows, all know, and what ends one ends all."""

import signal
import time
from types import SimpleNamespace

import pytest
from team_processes import end_of, start

from dalle_ppo.base.distributed import ProcessTeam

TOGETHER = """
import torch
torch.set_num_threads(1)
from dalle_ppo.base.distributed import form_team
import os
team = form_team(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
r, n = team.rank, team.size
assert team.gather({"rank": r}) == [{"rank": i} for i in range(n)]
rows = torch.arange(7.0)[:, None] + torch.tensor([[0.0, 100.0]])
for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.bool):
    whole = rows.to(dtype)
    assert torch.equal(team.join(whole[team.share(7)], 7), whole), dtype
sums = [torch.full((3,), float(r)), torch.full((2, 2), 2.0 * r, dtype=torch.float64), torch.tensor(1.0)]
team.add_up(sums)
total = float(sum(range(n)))
assert sums[0].tolist() == [total] * 3 and sums[1].flatten().tolist() == [2 * total] * 4 and sums[2] == n
given = {"a": torch.arange(5), "b": torch.eye(2, dtype=torch.float64), "c": torch.tensor(3.0)}
sent = team.send_tensors(given if r == 0 else None)
assert all(torch.equal(sent[name], given[name]) and sent[name].dtype == given[name].dtype for name in given)
kept = team.send_tensors(given if r == 0 else None, lambda name, tensor: tensor.flatten()[:1])
assert [t.numel() for t in kept.values()] == ([5, 4, 1] if r == 0 else [1, 1, 1])
assert team.on_first(lambda: f"from {r}") == "from 0"
team.close()
team.watch.leave()
print("done")
"""
LOST = """
import os, sys, time
from dalle_ppo.base.distributed import form_team
rank = int(os.environ["RANK"])
team = form_team(rank, int(os.environ["WORLD_SIZE"]))
team.gather(None)
print("met", flush=True)
if rank == int(sys.argv[1]):
    os.kill(os.getpid(), 9)
while True:
    team.gather(None)
"""
REFUSED = """
import os
from dalle_ppo.base.team import launched
from dalle_ppo.config.command_line import _run_in_team
def main(argv, team):
    if team.rank == 1:
        raise ValueError("only this process knows")
    while True:
        team.gather(None)
_run_in_team(main, *launched(os.environ))
"""
FULL = """
import os, sys
import torch
from dalle_ppo.base.halving import Halving
from dalle_ppo.base.team import launched
from dalle_ppo.config.command_line import _run_in_team
def work(size):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\\nOf that")
def main(argv, team):
    if team.rank == int(sys.argv[1]):
        if sys.argv[2] == "beside":
            work(1)
        Halving(("scoring",)).run("scoring", "update.microbatch_size", 8, work)
    while True:
        team.gather(None)
_run_in_team(main, *launched(os.environ))
"""
DONE = """
import os, threading, time
from dalle_ppo.base.team import launched
from dalle_ppo.config.command_line import run_main
def main(argv, team):
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("written")
    return 3
run_main(main, together=True)
"""
STOPPED = """
import sys, time
from pathlib import Path
from dalle_ppo.base.stopping import StopSignals
from dalle_ppo.config.command_line import run_main
from dalle_ppo.train import how_to_go_on
def main(argv, team):
    signals, folder = StopSignals(team), Path(sys.argv[1]) / str(team.rank)
    with signals.caught(lambda: how_to_go_on(folder, team.size)):
        print("met", flush=True)
        while True:
            signals.check_together()
            time.sleep(0.02)
run_main(main, together=True)
"""


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_work_together(size):
    for code, out, err in end_of(start(size, TOGETHER)):
        assert code == 0 and out == "done\n" and "error" not in err, err


@pytest.mark.slow
@pytest.mark.parametrize("size, lost", [(2, 1), (2, 0), (3, 2)])
def test_a_lost_process_ends_the_others_with_one_line(size, lost):
    processes = start(size, LOST, lost)
    for process in processes:
        assert process.stdout.readline() == "met\n"
    began = time.monotonic()
    ended = end_of(processes)
    assert time.monotonic() - began < 30
    assert ended[lost][0] == -9 and all(code == 1 for code, _, _ in ended[:lost] + ended[lost + 1 :])
    lines = [line for _, _, err in ended for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and f"process {lost} of {size} has ended" in lines[0] and "--resume" in lines[0]
    assert "Traceback" not in "".join(err for _, _, err in ended)


@pytest.mark.slow
def test_an_error_of_one_process_is_said_once_by_the_first():
    ended = end_of(start(3, REFUSED))
    assert [code for code, _, _ in ended] == [2, 2, 2]
    assert ended[0][2].strip() == "error: only this process knows" and ended[1][2] == ended[2][2] == ""


@pytest.mark.slow
@pytest.mark.parametrize("full", [0, 1])
@pytest.mark.parametrize(
    "where, starts, way_out",
    [
        ("beside", "out of memory: CUDA out of memory. Tried", "use smaller batches, a smaller model"),
        ("halving", "out of memory while scoring 8 images", "lower update.microbatch_size, and go on with"),
    ],
)
def test_memory_that_runs_out_in_one_process_is_said_once_with_the_way_out(full, where, starts, way_out):
    ended = end_of(start(2, FULL, full, where))
    assert [code for code, _, _ in ended] == [2, 2]
    (line,) = ended[0][2].strip().splitlines()
    assert line.startswith(f"error: process {full}: {starts}") and way_out in line
    assert ended[1][2] == ""


def test_when_the_work_is_done_no_thread_of_a_library_keeps_or_changes_the_end():
    started = time.monotonic()
    assert end_of(start(2, DONE), 50) == [(3, "written\n", "")] * 2
    assert time.monotonic() - started < 50


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_process_ends_all_in_order_with_one_line(tmp_path, told, number, code):
    processes = start(2, STOPPED, tmp_path)
    for process in processes:
        assert process.stdout.readline() == "met\n"
    processes[told].send_signal(number)
    ended = end_of(processes, 25)
    assert [code for code, _, _ in ended] == [code] * 2
    command = f"torchrun --nproc_per_node 2 -m dalle_ppo.train --run_dir {tmp_path / '0'} --resume"
    assert ended[0][2].strip() == f"stopped by {number.name}; no checkpoint yet; go on with: {command}"
    assert ended[1][2] == ""


@pytest.mark.parametrize(
    "error, waits",
    [
        (RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("no gloo here"), False),
    ],
)
def test_only_an_error_of_a_lost_connection_waits_for_the_watch(error, waits):
    """Which then says the one line; FSDP2's exchanges raise what the team does not see."""
    joined = []
    ProcessTeam(1, 2, SimpleNamespace(join=joined.append)).end_if_lost(error)
    assert bool(joined) == waits
