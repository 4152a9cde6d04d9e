"""How much a reward model knows after so many answers of the simulated rater.

    python benchmarks/preferences.py

Draws pairs from the built-in world's model, has them answered with a tenth of errors, fits reward models on
some of the answers, and asks on other captions how often they agree with the true preference, and how many
unsafe pictures are left, by the judge, if the better picture of each pair is kept. No policy is trained.
"""

import argparse

import numpy as np
import torch

from dalle_ppo.build.captions import build_captions
from dalle_ppo.build.models import load_model
from dalle_ppo.build.simulated import open_rater, rater_against_judge
from dalle_ppo.config.settings import Config
from dalle_ppo.iconworld.judge import load_judge, look
from dalle_ppo.iconworld.rater import true_ranks
from dalle_ppo.iconworld.world import World
from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.heads.preference import features
from dalle_ppo.policy.rollout import NoiseSource, as_float, collect
from dalle_ppo.preferences.reward_model.data import Rankings
from dalle_ppo.preferences.reward_model.network import FitSettings, fit
from dalle_ppo.preferences.reward_model.quality import margins

ANSWERS, HIDDEN, SEEDS, TEST = (150, 300, 600), (0, 128), range(3), 300
LABELS_STREAM, BATCH = 3, 100


def draw_pairs(num: int) -> tuple[torch.Tensor, list[str]]:
    """Images uint8 [2 num, 3, 64, 64], pair by pair, and their captions."""
    config, model = Config(), load_model("builtin", torch.device("cpu"))
    family = model.family(config.policy)
    captions = build_captions(config, 0, LABELS_STREAM, "train").next_batch(num)
    weights, images, texts = family.sampler_weights(model.decoder), [], []
    for start in range(0, num, BATCH):
        noise = NoiseSource(0, "preferences", start)
        drawn = collect(family, weights, captions[start : start + BATCH], 2, noise)
        images.append(drawn.images)
        texts += drawn.captions
    return torch.cat(images), texts


def measure(rankings: Rankings, truth: Rankings, unsafe: np.ndarray, answers: int, hidden: int) -> np.ndarray:
    """Agreement with the truth, and unsafe share of the kept pictures, [seeds, 2]."""
    rows = []
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(rankings))
        learned, test = order[TEST:][:answers], truth.rows(order[:TEST].tolist())
        cut = answers * 4 // 5
        parts = {
            "fit": rankings.rows(learned[:cut].tolist()),
            "validation": rankings.rows(learned[cut:].tolist()),
        }
        ensemble = fit(parts, FitSettings(hidden=hidden, seed=seed))
        with torch.no_grad():
            scores = ensemble(rankings.features).mean(dim=1)[test.index].numpy()
        kept = test.index.numpy()[np.arange(TEST), scores.argmax(axis=1)]
        rows.append([(margins(ensemble, test)[0] > 0).mean(), unsafe[kept].mean()])
    return np.array(rows)


def main() -> None:
    """Draws, fits and prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1000, help="at least 900")
    num = parser.parse_args().pairs
    world = World()
    images, captions = draw_pairs(num)
    rater, clip = open_rater(world), load_clip(str(world.clip), None)
    print(rater_against_judge(world, rater, images).line())
    worths = [seen.worth(caption) for seen, caption in zip(rater.see(images), captions, strict=True)]
    pairs = [worths[2 * i : 2 * i + 2] for i in range(num)]
    index, texts = torch.arange(2 * num).view(num, 2), tuple(captions[::2])
    read = features(clip.embed_images(as_float(images)), clip.embed_texts(captions))
    answered = torch.tensor([rater.ranks(pair, str(i)) for i, pair in enumerate(pairs)])
    true = torch.tensor([true_ranks(pair) for pair in pairs])
    rankings, truth = (Rankings(read, index, ranks, texts) for ranks in (answered, true))
    unsafe = look(load_judge(world.judge), images).unsafe
    best = index.numpy()[np.arange(num), true.argmin(dim=1).numpy()]
    print(f"ties: {(true[:, 0] == true[:, 1]).float().mean():.0%} of the pairs")
    print(f"unsafe by the judge: {unsafe.mean():.1%} of all, {unsafe[best].mean():.1%} of the truly better")
    print(
        "\n| answers | hidden units | agrees with the true preference | unsafe among the kept |\n"
        "|---|---|---|---|"
    )
    for answers in ANSWERS:
        for hidden in HIDDEN:
            right, kept = measure(rankings, truth, unsafe, answers, hidden).T
            print(
                f"| {answers} | {hidden} | {right.mean():.1%} ({right.min():.1%} to {right.max():.1%}) | "
                f"{kept.mean():.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
