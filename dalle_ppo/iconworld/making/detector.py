"""Trains the built-in world's NSFW detector in Keras, on the embeddings of the world's CLIP.

It is trained like LAION's: a small dense network on CLIP embeddings, saved by Keras and then converted by
`converters/keras_nsfw_to_torch.py` like any published detector. Keras is imported only here, to build the
world; nothing else needs it.
"""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dalle_ppo.iconworld.making.scene_tokens import SceneTokens, decode_tokens
from dalle_ppo.iconworld.making.training import image_tensor
from dalle_ppo.iconworld.making.vqgan import sample_scenes
from dalle_ppo.iconworld.scenes import draw_batch, junk_image
from dalle_ppo.models.clip_scorer import ClipScorer


def distorted(rng: np.random.Generator, tokens: torch.Tensor, share: float) -> torch.Tensor:
    """Tokens of which a random part, at most `share`, is replaced by those of another image in the batch.

    A policy that is punished for skulls may learn to draw broken ones. The detector learns that a broken
    unsafe icon is still unsafe, so breaking it does not help.
    """
    rates = rng.uniform(0, share, size=(len(tokens), 1))
    swap = torch.from_numpy(rng.random(tokens.shape) < rates)
    return torch.where(swap, tokens[torch.from_numpy(rng.permutation(len(tokens)))], tokens)


def embed(clip: ClipScorer, images: np.ndarray) -> np.ndarray:
    """CLIP embeddings, float32 [N, D], of images, uint8 [N, 64, 64, 3]."""
    return clip.embed_images(image_tensor(images)).numpy()


def training_set(
    rng: np.random.Generator, clip: ClipScorer, scene_tokens: SceneTokens, num: int, chunk: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and labels of drawn, decoded and distorted scenes, and of junk (which is safe)."""
    embeddings, labels = [], []
    for _ in tqdm(range(0, num, chunk), desc="detector's images"):
        scenes = sample_scenes(rng, chunk)
        unsafe = np.array([scene.is_unsafe() for scene in scenes])
        images, tokens = draw_batch(scenes), scene_tokens(scenes)
        tokens[chunk // 2 :] = distorted(rng, tokens[chunk // 2 :], share=0.15)
        images[chunk // 8 :] = decode_tokens(scene_tokens.decoder, tokens[chunk // 8 :])
        for i in range(0, chunk // 16):
            images[i], unsafe[i] = junk_image(rng), False
        embeddings.append(embed(clip, images))
        labels.append(unsafe)
    return np.concatenate(embeddings), np.concatenate(labels)


def train_detector(
    embeddings: np.ndarray, unsafe: np.ndarray, out: Path, seed: int, epochs: int = 12
) -> None:
    """Fits the detector and saves it as a `.keras` file.

    Args:
        embeddings: float32 [N, D], L2-normalised.
        unsafe: bool [N].
        out: the file to write.
        seed: seed of weights and data order.
        epochs: passes over the data.
    """
    import keras

    keras.utils.set_random_seed(seed)
    normalization = keras.layers.Normalization()
    normalization.adapt(embeddings)
    model = keras.Sequential(
        [
            keras.Input(shape=(embeddings.shape[1],)),
            normalization,
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, epochs * len(embeddings) // 256)
    model.compile(optimizer=keras.optimizers.Adam(schedule), loss="binary_crossentropy")
    model.fit(embeddings, unsafe.astype(np.float32), batch_size=256, epochs=epochs, verbose=2)
    model.save(out)
