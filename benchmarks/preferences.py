"""How much a reward model knows after so many answers of the simulated rater.

    python benchmarks/preferences.py
    python benchmarks/preferences.py --mix risky --seed 1

Draws sets of four from the built-in world's model, has all four or the first two of each answered with a
tenth of errors, fits reward models on some of the answers, and asks on other captions how often they agree
with the true preference about two of the four, and how many unsafe pictures are left, by the judge, if the
best of each set is kept. No policy is trained.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch

from dalle_ppo.build.captions import LABELS_STREAM, build_captions
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

# Pictures of a set that are answered, answers, hidden units.
ROWS = ((2, 600, 128), (4, 150, 128), (4, 300, 128), (4, 600, 128), (4, 600, 0))
SPLITS, TEST, DRAWN = range(3), 200, 4
BATCH = 50
MIXES = {
    "plain": {"UNLIKELY": 0.5, "UNSURE": 0.25, "NSFW": 0.25},
    "risky": {"UNLIKELY": 0.2, "UNSURE": 0.4, "NSFW": 0.4},
}


def draw_sets(num: int, mix: str, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Images uint8 [4 num, 3, 64, 64], set by set, and their captions."""
    config = Config()
    config = replace(config, captions=replace(config.captions, shares=MIXES[mix]))
    model = load_model("builtin", torch.device("cpu"))
    family = model.family(config.policy)
    captions = build_captions(config, seed, LABELS_STREAM, "train").next_batch(num)
    weights, images, texts = family.sampler_weights(model.decoder), [], []
    for start in range(0, num, BATCH):
        noise = NoiseSource(seed, "preferences", start)
        drawn = collect(family, weights, captions[start : start + BATCH], DRAWN, noise)
        images.append(drawn.images)
        texts += drawn.captions
    return torch.cat(images), texts


def measure(answered: Rankings, truth: Rankings, unsafe: np.ndarray, answers: int, hidden: int) -> np.ndarray:
    """Of each split: agreement with the truth, the same where one is unsafe, unsafe share of the kept."""
    rows = []
    for split in SPLITS:
        order = np.random.default_rng(split).permutation(len(truth)).tolist()
        learned, test = order[TEST:][:answers], truth.rows(order[:TEST])
        cut = answers * 4 // 5
        parts = {"fit": answered.rows(learned[:cut]), "validation": answered.rows(learned[cut:])}
        ensemble = fit(parts, FitSettings(hidden=hidden, seed=split))
        with torch.no_grad():
            scores = ensemble(truth.features).mean(dim=1).numpy()
        winner, loser, _ = test.pairs()
        right, about_safety = scores[winner] > scores[loser], unsafe[loser] & ~unsafe[winner]
        index = test.index.numpy()
        kept = index[np.arange(TEST), scores[index].argmax(axis=1)]
        rows.append([right.mean(), right[about_safety].mean(), unsafe[kept].mean()])
    return np.array(rows)


def main() -> None:
    """Draws, fits and prints a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=800, help="at least 800; default: 800")
    parser.add_argument("--mix", choices=tuple(MIXES), default="plain", help="of captions; default: plain")
    parser.add_argument("--seed", type=int, default=2, help="of captions and noise; default: 2")
    args = parser.parse_args()
    world = World()
    images, captions = draw_sets(args.sets, args.mix, args.seed)
    rater, clip = open_rater(world), load_clip(str(world.clip), None)
    print(rater_against_judge(world, rater, images).line())
    worths = [seen.worth(caption) for seen, caption in zip(rater.see(images), captions, strict=True)]
    sets = [worths[i : i + DRAWN] for i in range(0, len(worths), DRAWN)]
    index, texts = torch.arange(len(images)).view(-1, DRAWN), tuple(captions[::DRAWN])
    read = features(clip.embed_images(as_float(images)), clip.embed_texts(captions))
    truth = Rankings(read, index, torch.tensor([true_ranks(of_set) for of_set in sets]), texts)
    unsafe = look(load_judge(world.judge), images).unsafe
    print(f"unsafe by the judge: {unsafe.mean():.1%} of all")
    print(
        "\n| pictures | answers | hidden units | agrees | where one is unsafe | unsafe among the kept |\n"
        "|---|---|---|---|---|---|"
    )
    for num, answers, hidden in ROWS:
        ranks = [rater.ranks(of_set[:num], f"{args.mix}{i}") for i, of_set in enumerate(sets)]
        answered = Rankings(read, index[:, :num], torch.tensor(ranks), texts)
        right, safety, kept = measure(answered, truth, unsafe, answers, hidden).T
        print(
            f"| {num} | {answers} | {hidden} | {right.mean():.1%} ({right.min():.1%} to {right.max():.1%}) | "
            f"{safety.mean():.1%} | {kept.mean():.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
