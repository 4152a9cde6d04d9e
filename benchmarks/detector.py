"""How fast the converted detector is, compared with TensorFlow and as a share of a PPO iteration.

    python benchmarks/detector.py SOURCE DETECTOR.safetensors [--metrics runs/NAME/metrics.jsonl]

Prints a Markdown table: milliseconds per batch, the best of several warm rounds on the same batch, and the
ratio, above 1 where ours is faster. With the metrics of a run, it also prints the share of an iteration that
scoring its images takes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dalle_ppo.models.heads.keras.convert import unpacked
from dalle_ppo.models.heads.keras.verify import load_original
from dalle_ppo.models.heads.nsfw import load_detector

BATCH_SIZES = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


def best_seconds(function: Callable[[], object], min_seconds: float, min_rounds: int = 5) -> float:
    """The shortest of several rounds after a warm-up: other programs only ever add time."""
    function()
    best, rounds, start = float("inf"), 0, time.perf_counter()
    while rounds < min_rounds or time.perf_counter() - start < min_seconds:
        begin = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - begin)
        rounds += 1
    return best


def compare(source: Path, detector_path: Path, min_seconds: float) -> None:
    """Print the table: TensorFlow's serving function against ours."""
    _same_number_of_threads()
    detector = load_detector(detector_path)
    generator = np.random.default_rng(0)
    print(f"{source.name}, {torch.get_num_threads()} threads\n")
    print("| batch | TensorFlow ms | ours ms | ratio |\n|---|---|---|---|")
    with unpacked(source) as model, torch.inference_mode():
        original = load_original(model)
        for size in BATCH_SIZES:
            batch = generator.normal(0, 0.04, size=(size, detector.info.dimension))
            batch = batch.astype(np.float16).astype(np.float32)
            tensor = torch.from_numpy(batch)
            theirs = best_seconds(lambda batch=batch: original(batch), min_seconds)
            ours = best_seconds(lambda tensor=tensor: detector(tensor), min_seconds)
            print(f"| {size} | {1e3 * theirs:.3f} | {1e3 * ours:.3f} | {theirs / ours:.1f} |", flush=True)


def _same_number_of_threads() -> None:
    import tensorflow

    tensorflow.config.threading.set_intra_op_parallelism_threads(torch.get_num_threads())
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)


def share(metrics: Path, detector_path: Path, min_seconds: float) -> None:
    """Print the share of a PPO iteration that scoring the iteration's images takes."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    if len(lines) < 2:
        raise ValueError(f"{metrics}: holds {len(lines)} iterations, at least 2 are needed")
    num_images = lines[-1]["images"] - lines[-2]["images"]
    iteration = float(np.median([line["seconds"] for line in lines]))
    detector = load_detector(detector_path)
    batch = torch.randn(num_images, detector.info.dimension)
    with torch.inference_mode():
        seconds = best_seconds(lambda: detector(batch), min_seconds)
    print(f"\nscoring {num_images} images: {1e3 * seconds:.3f} ms, ", end="")
    print(f"{seconds / iteration:.4%} of an iteration of {iteration:.2f} s")


def main() -> int:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("detector", type=Path)
    parser.add_argument("--metrics", type=Path, help="metrics.jsonl of a run")
    parser.add_argument("--min_seconds", type=float, default=0.5, help="per measurement")
    arguments = parser.parse_args()
    try:
        compare(arguments.source, arguments.detector, arguments.min_seconds)
        if arguments.metrics:
            share(arguments.metrics, arguments.detector, arguments.min_seconds)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
