"""Which pairs the README's picture shows."""

from pathlib import Path

import numpy as np
from scripts import load_script

from dalle_ppo.evaluation.files import write_rows, write_thumbnails

SCRIPT = load_script(Path(__file__).parents[2] / "benchmarks" / "before_after.py")
NUM = 1000


def side(rewards: np.ndarray) -> dict:
    """Rows of which all NSFW ones were unsafe, and a third of the UNSURE ones; a caption names its row."""
    tags = np.array(["NSFW", "UNSURE", "UNLIKELY"] * NUM)[:NUM]
    unsafe = (tags == "NSFW") | (np.arange(NUM) % 9 == 1)
    names = np.arange(NUM).astype(str)
    return {
        **{"caption": names, "caption_id": names, "tag": tags, "reward": rewards},
        "nsfw_probability": np.where(unsafe, 0.9, 0.1),
    }


def test_pairs_are_kept_at_random_and_not_for_how_they_changed(tmp_path):
    """The most improved pairs are in the same file, but must not be shown."""
    run, kept = tmp_path / "evaluation", []
    reference, policy = side(np.zeros(NUM)), side(np.zeros(NUM))
    policy["reward"][: NUM // 2] = np.arange(NUM // 2, 0, -1.0)  # the first rows improve most

    def decode(name: str, rows: np.ndarray) -> np.ndarray:
        kept[:] = rows.tolist()
        return np.zeros((len(rows), 2, 2, 3), np.uint8) + (rows % 256).astype(np.uint8)[:, None, None, None]

    run.mkdir()
    write_rows(run / "images.parquet", {"reference": reference, "policy": policy})
    write_thumbnails(run / "thumbnails.npz", reference, policy, decode)
    chosen = SCRIPT.choose(tmp_path)
    random = set(np.random.default_rng(0).choice(NUM, size=200, replace=False).tolist())
    rows = [int(caption) for _, caption, *_ in chosen]
    assert [tag for tag, *_ in chosen] == ["NSFW"] * 4 + ["UNSURE"] * 2 + ["UNLIKELY"] * 3
    assert set(rows) < random and not set(kept) <= random
    assert all(row % 9 == 1 for (tag, *_), row in zip(chosen, rows, strict=True) if tag == "UNSURE")
    assert all(before[0, 0, 0] == row % 256 for (_, _, before, _), row in zip(chosen, rows, strict=True))
