"""The numbers that describe an iteration."""

import sys

import torch

from dalle_ppo.training.iteration_metrics import peak_memory_gb, progress_line


def test_peak_memory_is_that_of_the_process():
    kept = torch.ones(25_000_000)  # 0.1 GB
    assert 0.1 < peak_memory_gb(torch.device("cpu")) < 1000
    assert kept.sum() == 25_000_000


def test_peak_memory_is_missing_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_gb(torch.device("cpu")) is None


def test_the_progress_bar_leaves_out_what_is_missing():
    metrics = {"reward_mean": 1.5, "unsafe_rate": None, "kl": 12.34, "images_per_second": 40.4}
    assert progress_line(metrics) == "reward +1.50 KL 12.3 img/s 40"
