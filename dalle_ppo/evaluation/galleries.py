"""Chooses the before/after pairs of an evaluation that a person should look at."""

import numpy as np

from dalle_ppo.captions.tags import in_order, named
from dalle_ppo.evaluation.columns import Columns

TAG_GALLERY = "tag:"


def gallery_rows(
    reference_rows: Columns,
    policy_rows: Columns,
    per_gallery: int = 12,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Choose pairs for the report; the evaluation keeps the pictures of all of them.

    The evaluation and the report must call this with the same arguments: choosing only among the kept
    pictures would fill the random galleries with extreme ones.

    Args:
        reference_rows, policy_rows: columns of the two sides, equally long and in the same order, with at
            least `caption_id`, `tag` and `reward`.
        per_gallery: maximum number of pairs in a gallery, each with a different caption.
        seed: seed of the random galleries.

    Returns:
        int64 row numbers by gallery: "improved" and "worsened" (by change of reward), "random", and one per
        tag, named by `tag_gallery`.
    """
    captions = np.asarray(reference_rows["caption_id"]).astype(str)
    tags = np.asarray([named(tag) for tag in reference_rows["tag"]])
    change = np.asarray(policy_rows["reward"], float) - np.asarray(reference_rows["reward"], float)
    shuffled = np.random.default_rng(seed).permutation(len(change))
    known = shuffled[np.isfinite(change[shuffled])]
    ranked = known[np.argsort(change[known], kind="stable")]
    galleries = {
        "improved": ranked[::-1][change[ranked[::-1]] > 0],
        "worsened": ranked[change[ranked] < 0],
        "random": shuffled,
    }
    for tag in in_order(tags.tolist()):
        galleries[tag_gallery(tag)] = shuffled[tags[shuffled] == tag]
    return {name: _distinct(chosen, captions, per_gallery) for name, chosen in galleries.items()}


def tag_gallery(tag: str) -> str:
    """The name of a tag's gallery, which no other gallery has: a tag may be called `random`."""
    return TAG_GALLERY + tag


def _distinct(rows: np.ndarray, captions: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows with distinct captions."""
    first = np.sort(np.unique(captions[rows], return_index=True)[1])
    return rows[first][:count].astype(np.int64)
