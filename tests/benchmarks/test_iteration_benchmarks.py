"""benchmarks/iteration.py and processes.py count right; what they measure takes minutes and is not here."""

import importlib
import socket
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import TINY
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parents[2] / "benchmarks"
TOKENS = 8


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("iteration"), importlib.import_module("processes")


def flops(work) -> tuple[float, float]:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()), 0.0


def test_two_lengths_stand_for_all(scripts, monkeypatch):
    """Operations in place of seconds, against passes over every length."""
    iteration, _ = scripts
    sizes = replace(TINY, num_image_tokens=TOKENS, num_text_tokens=64, text_vocab_count=64)
    monkeypatch.setitem(iteration.SIZES, "tiny", sizes)
    a = Namespace(size="tiny", images=2, minibatch=1, epochs=1, trainable="all")
    with monkeypatch.context() as patch:
        patch.setattr(iteration, "timed", flops)
        scaled = iteration.of_obvious(a).wall
    networks = iteration.trainer_of(a).networks
    text = iteration.TextStates(torch.randn(2, 16, sizes.width), torch.ones(2, 16).bool())
    exact = 0.0
    for length in range(1, TOKENS + 1):
        drawn = torch.zeros(2, length, dtype=torch.long)
        for network, passes in ((networks.actor, 2), (networks.critic, 1)):

            def compute(network=network, drawn=drawn):
                out = network(drawn, network.cross_states(text))[:, -1]
                return network.head(out) if network is networks.actor else out

            exact += passes * flops(lambda: torch.no_grad()(compute)())[0]
            exact += flops(lambda: compute().sum().backward())[0]
    assert 0.8 < scaled / exact <= 1.0, "it must not make the obvious way look slower than it is"


def test_ours_draws_and_learns_from_as_many_images_as_asked_for(scripts, monkeypatch):
    iteration, _ = scripts
    sizes = replace(TINY, num_image_tokens=4, num_text_tokens=64, text_vocab_count=64)
    monkeypatch.setitem(iteration.SIZES, "tiny", sizes)
    trainer = iteration.trainer_of(Namespace(size="tiny", images=4, minibatch=2, epochs=3, trainable="all"))
    metrics = trainer.iterate(iteration.SilentWriter())
    assert metrics["images"] == 4 and metrics["skipped_updates"] == 0
    assert {int(entry["step"]) for entry in trainer.actor.optimizer.state.values()} == {6}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's tcp_info")
def test_bytes_on_connections_are_counted(scripts):
    _, processes = scripts
    before = processes.bytes_sent()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0] as accepted,
    ):
        client.sendall(b"x" * 100_000)
        left = 100_000
        while left:
            left -= len(accepted.recv(left))
        assert 100_000 <= processes.bytes_sent() - before < 100_100
