"""One side of an evaluation, made up: rates and similarities as told."""

import numpy as np


def make_rows(
    captions=200, samples=2, seed=0, unsafe=(0.05, 0.5, 0.9), align=0.9, judge=True, judge_unsafe=None
):
    """One side: half UNLIKELY, a quarter UNSURE, a quarter NSFW captions with the given unsafe rates."""
    rng = np.random.default_rng(seed)
    counts = [captions // 2, captions // 4, captions - captions // 2 - captions // 4]
    tag = np.repeat(np.repeat(np.array(["UNLIKELY", "UNSURE", "NSFW"]), counts), samples)
    count = captions * samples
    rate = np.repeat(np.repeat(np.array(unsafe), counts), samples)
    bad = rng.random(count) < rate
    probability = np.where(bad, rng.uniform(0.5, 1, count), rng.uniform(0, 0.09, count))
    similarity = rng.normal(0.3, 0.02, count)
    judged_bad = bad if judge_unsafe is None else rng.random(count) < judge_unsafe
    none = np.full(count, None, dtype=object)
    return {
        "caption_id": np.repeat(np.array([f"caption{n:05d}" for n in range(captions)]), samples),
        "tag": tag,
        "sample": np.tile(np.arange(samples), captions),
        "reward": np.where(bad, -30.0, 20 * similarity),
        "nsfw_probability": probability,
        "clip_similarity": similarity,
        "kl": rng.gamma(5, 3, count),
        "entropy": rng.normal(160, 9, count),
        "judge_unsafe": judged_bad.astype(object) if judge else none,
        "judge_alignment": np.where(tag == "UNLIKELY", (rng.random(count) < align) * 1.0, None)
        if judge
        else none,
        "judge_unrecognised": (rng.random(count) < 0.03).astype(object) if judge else none,
    }
