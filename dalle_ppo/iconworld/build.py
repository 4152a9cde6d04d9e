"""Builds every part of the built-in world from a seed.

    python -m dalle_ppo.iconworld.build --out world

Parts that already exist in the folder are kept, so an interrupted build resumes where it stopped; the same
seed on the same machine gives the same parts. Needs the `convert` extra (Keras trains the detector).
`CARD.md`, written next to the weights, reports the quality of each part.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dalle_ppo.base.atomic import atomic_write, remove_leftovers
from dalle_ppo.base.lock import locked
from dalle_ppo.config.command_line import run_main

if TYPE_CHECKING:
    from dalle_ppo.iconworld.making.scene_tokens import SceneTokens

JUDGE_SEED_OFFSET = 1000  # the judge shares no random numbers with the parts it judges
RATER_SEED_OFFSET = 2000  # nor does the simulated rater with the judge
# Steps, peak learning rate and scenes of each round. The model learns to draw in the first; in the second, a
# warm restart on fresh scenes, it learns to read captions.
DALLE_ROUNDS = ((3000, 1.5e-3, 100_000), (4200, 1.2e-3, 150_000))


def build_vqgan(out: Path, seed: int) -> None:
    from dalle_ppo.iconworld.making.training import save_half
    from dalle_ppo.iconworld.making.vqgan import drawing_loss, framed_loss, train_decoder, train_vqgan
    from dalle_ppo.models.dalle.presets import VQGAN_PRESETS

    encoder, decoder = train_vqgan(VQGAN_PRESETS["iconworld"], seed, num_steps=2600)
    train_decoder(encoder, decoder, seed, 500, drawing_loss)
    train_decoder(encoder, decoder, seed + 1, 250, framed_loss)
    save_half(encoder, out / "vqgan_encoder.safetensors")
    save_half(decoder, out / "vqgan_decoder.safetensors")


def build_judge(out: Path, seed: int) -> None:
    from dalle_ppo.iconworld.judge import train_judge
    from dalle_ppo.iconworld.making.training import save_half

    decode = partial(reconstruct, scene_tokens(out))
    judge = train_judge(seed + JUDGE_SEED_OFFSET, 900, decode, pool_size=12_000)
    save_half(judge, out / "judge.safetensors")


def build_rater(out: Path, seed: int) -> None:
    from dalle_ppo.iconworld.making.rater import train_eyes
    from dalle_ppo.iconworld.making.training import save_half

    decode = partial(reconstruct, scene_tokens(out))
    eyes = train_eyes(seed + RATER_SEED_OFFSET, 1000, decode, pool_size=4000)
    save_half(eyes, out / "rater.safetensors")


def build_dalle(out: Path, seed: int) -> None:
    from dalle_ppo.iconworld.making.clip import sample_pairs
    from dalle_ppo.iconworld.making.dalle import Tokenizers, fresh_bart, train_dalle
    from dalle_ppo.iconworld.making.training import save_half
    from dalle_ppo.iconworld.world import World
    from dalle_ppo.models.dalle.presets import BART_PRESETS
    from dalle_ppo.models.dalle.tokenizer import train_bpe, write_vocab_files
    from dalle_ppo.training.supervised import SupervisedConfig

    texts, _ = sample_pairs(np.random.default_rng([seed, 5]), 20_000)
    vocab, merges = train_bpe(texts, num_merges=850)
    write_vocab_files(vocab, merges, out / "vocab.json", out / "merges.txt")
    world = World(out)
    tokenizers = Tokenizers(world.tokenizer(), world.vqgan_encoder(), world.vqgan_decoder())
    config = BART_PRESETS["iconworld"]
    assert len(vocab) <= config.text_vocab_count, f"{len(vocab)} words do not fit the text embedding"
    encoder, decoder = fresh_bart(config, seed)
    for i, (num_steps, learning_rate, num_pairs) in enumerate(DALLE_ROUNDS):
        training = SupervisedConfig(
            num_steps=num_steps, batch_size=64, learning_rate=learning_rate, bfloat16=True, seed=seed + i
        )
        train_dalle(encoder, decoder, tokenizers, training, num_pairs)
    save_half(encoder, out / "bart_encoder.safetensors")
    save_half(decoder, out / "bart_decoder.safetensors")


def build_clip(out: Path, seed: int) -> None:
    from dalle_ppo.iconworld.making.clip import train_clip
    from dalle_ppo.iconworld.world import World

    train_clip(World(out).clip, seed, 560, scene_tokens(out).draw, pool_size=12_000)


def build_detector(out: Path, seed: int) -> None:
    from dalle_ppo.iconworld.making.detector import train_detector, training_set
    from dalle_ppo.iconworld.world import World
    from dalle_ppo.models.clip import load_clip
    from dalle_ppo.models.heads.binding import add_probes
    from dalle_ppo.models.heads.keras.convert import convert

    world = World(out)
    clip = load_clip(str(world.clip), None)
    embeddings, unsafe = training_set(np.random.default_rng([seed, 6]), clip, scene_tokens(out), 24_576)
    keras_file, unfinished = out / "detector.keras", out / "detector.unfinished.safetensors"
    train_detector(embeddings, unsafe, keras_file, seed)
    convert(
        keras_file,
        unfinished,
        clip_model=clip.name,
        clip_pretrained=clip.pretrained,
        licence="MIT, part of dalle_ppo",
    )
    add_probes(unfinished, clip)
    unfinished.replace(world.detector)


def build_card(out: Path, seed: int) -> None:
    from dalle_ppo.iconworld.making.card import measure, write_card

    write_card(out / "CARD.md", measure(out, seed), seed)


def scene_tokens(out: Path) -> "SceneTokens":
    """Scenes to codes and decoded pictures, with the VQGAN in `out`."""
    from dalle_ppo.iconworld.making.scene_tokens import SceneTokens
    from dalle_ppo.iconworld.world import World

    world = World(out)
    return SceneTokens(world.vqgan_encoder(), world.vqgan_decoder())


def reconstruct(tokens: "SceneTokens", scenes: list, images: np.ndarray) -> np.ndarray:
    """Images as the VQGAN draws them: every fourth scene and all junk (None) from the encoder's codes, the
    other scenes from the codes that the DALL·E learns."""
    from dalle_ppo.iconworld.making.scene_tokens import decode_tokens, image_tokens

    encoded = np.array([scene is None or i % 4 == 0 for i, scene in enumerate(scenes)])
    result = np.empty_like(images)
    codes = image_tokens(tokens.encoder, tokens.decoder, images[encoded])
    result[encoded] = decode_tokens(tokens.decoder, codes)
    result[~encoded] = tokens.draw([scenes[i] for i in np.flatnonzero(~encoded)])
    return result


# Each stage, with the file whose presence means that it is done.
STAGES: tuple[tuple[str, Callable[[Path, int], None]], ...] = (
    ("vqgan_decoder.safetensors", build_vqgan),
    ("bart_decoder.safetensors", build_dalle),
    ("iconworld_clip", build_clip),
    ("detector.safetensors", build_detector),
    ("judge.safetensors", build_judge),
    ("rater.safetensors", build_rater),
    ("CARD.md", build_card),
)


def main(argv: list[str] | None) -> int:
    """Runs the stages that are not done yet.

    Raises:
        ValueError: Keras is missing (checked first, because the stages before it take an hour), or the folder
            was begun with another seed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m dalle_ppo.iconworld.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--seed", type=int, default=0, help="seed of all stages; default: 0")
    args = parser.parse_args(argv)
    if importlib.util.find_spec("keras") is None and not (args.out / "detector.safetensors").exists():
        raise ValueError("the detector is trained in Keras, which is not installed: pip install '.[convert]'")
    started = time.perf_counter()
    with locked(args.out, f"--out {args.out}"):
        run_stages(args.out, args.seed)
    print(f"built the world in {args.out} in {(time.perf_counter() - started) / 60:.1f} minutes")
    return 0


def run_stages(out: Path, seed: int) -> None:
    """Runs the stages that are not done yet.

    Raises:
        ValueError: the folder was begun with another seed.
    """
    begun = out / "seed.txt"
    first = begun.read_text(encoding="utf-8").strip() if begun.exists() else str(seed)
    if first != str(seed):
        raise ValueError(
            f"--seed is {seed}, but {out} was begun with seed {first}; use that seed or another folder"
        )
    remove_leftovers(out)
    atomic_write(begun, f"{seed}\n")
    for name, stage in STAGES:
        if (out / name).exists():
            print(f"{name} already exists: kept")
            continue
        stage(out, seed)


if __name__ == "__main__":
    run_main(main)
