"""A trial of a term leaves no trace in what the term remembers, wherever it keeps it."""

import functools
import sys

import pytest

from dalle_ppo.rewards.calling import import_function
from dalle_ppo.rewards.memory import unremembered

HELPER = """
class Mean:
    def __init__(self):
        self.count, self.values = 0, []

    def add(self, value):
        self.count += 1
        self.values.append(value)
"""
OWN = """
import random
import threading
from collections import Counter, deque

import numpy as np
import torch
from helper_of_a_memory_test import Mean
from torch import nn

calls, seen, recent, counts = 0, [], deque(maxlen=2), Counter()
mean, array, tensor = Mean(), np.zeros(2), torch.zeros(2)
generators = [torch.Generator().manual_seed(1), random.Random(1), np.random.default_rng(1)]
norm, lock, model = nn.BatchNorm1d(1), threading.Lock(), None
config = {"inner": {"calls": 0}}

def module(images, captions):
    global calls, model
    calls += 1
    model = model or "loaded"
    seen.append(calls); recent.append(calls); counts["calls"] += 1; mean.add(calls)
    array[:] += 1; tensor.add_(1)
    config["inner"]["calls"] += 1
    norm(torch.tensor([[1.0], [3.0]]))
    drawn = [torch.rand(1, generator=generators[0]).item(), generators[1].random(), generators[2].random()]
    stats = [norm.running_mean.item(), norm.num_batches_tracked.item()]
    return [calls, list(seen), list(recent), dict(counts), mean.count, list(mean.values), array.tolist(),
            tensor.tolist(), config["inner"]["calls"], drawn, stats]

def closure():
    calls, mean, held = 0, Mean(), [0]
    def reward(images, captions):
        nonlocal calls
        calls += 1
        mean.add(calls)
        held[0] += 1
        return [calls, mean.count, list(mean.values), held[0]]
    return reward

class Callable:
    def __init__(self):
        self.calls, self.mean = 0, Mean()

    def __call__(self, images, captions):
        self.calls += 1
        self.mean.add(self.calls)
        return [self.calls, self.mean.count, list(self.mean.values)]

    def method(self, images, captions):
        return self(images, captions)

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.calls, self.weight = nn.BatchNorm1d(1), 0, nn.Parameter(torch.ones(1))

    def forward(self, images, captions):
        self.calls += 1
        self.norm(torch.tensor([[1.0], [3.0]]))
        return [self.calls, self.norm.running_mean.item()]

instance, method, network = Callable(), Callable().method, Network()

@torch.no_grad()
def decorated(images, captions):
    return module(images, captions)

def scaled(scale, images, captions):
    return module(images, captions)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_memory_of_a_test.py").write_text(OWN)
    (tmp_path / "helper_of_a_memory_test.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_memory_of_a_test", "helper_of_a_memory_test"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "own_memory_of_a_test"


@pytest.mark.parametrize(
    "name", ["module", "closure", "instance", "method", "network", "decorated", "scaled"]
)
def test_after_a_trial_the_first_call_is_the_first(own, name, monkeypatch):
    def first_calls(num_trials):
        monkeypatch.delitem(sys.modules, own, raising=False)
        function = import_function(f"{own}:{name}") if name != "scaled" else None
        function = function or functools.partial(__import__(own).scaled, 2.0)
        for _ in range(num_trials):
            with unremembered([function]):
                function(None, None)
                function(None, None)
        return [function(None, None) for _ in range(3)]

    undisturbed = first_calls(0)
    assert undisturbed[0] != undisturbed[1], "it remembers"
    assert first_calls(1) == first_calls(2) == undisturbed


def test_what_a_trial_loads_is_not_loaded_twice(own):
    function = import_function(f"{own}:module")
    with unremembered([function]):
        function(None, None)
    assert sys.modules[own].model == "loaded"


def test_an_error_in_a_trial_puts_it_back_too(own):
    function = import_function(f"{own}:module")
    with pytest.raises(KeyError), unremembered([function]):
        function(None, None)
        raise KeyError
    assert sys.modules[own].calls == 0


def test_functions_without_code_of_their_own_are_left_alone():
    with unremembered([len, functools.partial(max, 1), str.upper]):
        pass
