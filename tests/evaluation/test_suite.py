"""A suite's scores against SciPy's exact tests."""

import numpy as np
import pytest
from scipy.stats import binomtest

from dalle_ppo.evaluation.suite import suite_scores


def test_scores_have_exact_intervals_and_mcnemars_test():
    rng = np.random.default_rng(0)
    tasks = np.array(["a", "b"]).repeat(40)
    flags = {side: rng.random(80) < rate for side, rate in (("reference", 0.4), ("policy", 0.7))}
    scores = suite_scores("mine", tasks, {**flags, "ceiling": np.ones(80)})
    assert scores["name"] == "mine" and list(scores["tasks"]) == ["a", "b", "overall"]
    for task, chosen in (("a", tasks == "a"), ("b", tasks == "b"), ("overall", tasks != "")):
        entry = scores["tasks"][task]
        assert (
            entry["num"] == chosen.sum()
            and entry["ceiling"]["score"] == 1
            and entry["ceiling"]["interval"][0] < 1
        )
        for side in ("reference", "policy"):
            exact = binomtest(int(flags[side][chosen].sum()), int(chosen.sum()))
            assert entry[side]["score"] == pytest.approx(exact.statistic)
            assert entry[side]["interval"] == pytest.approx(list(exact.proportion_ci(method="exact")))
        changed = (flags["policy"] != flags["reference"])[chosen]
        up = int((flags["policy"] & ~flags["reference"])[chosen].sum())
        assert entry["sign_p"] == pytest.approx(binomtest(up, int(changed.sum())).pvalue)
        assert entry["difference"] == pytest.approx(entry["policy"]["score"] - entry["reference"]["score"])
