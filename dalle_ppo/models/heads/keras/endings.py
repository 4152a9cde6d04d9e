"""How a model's last numbers become one probability: two classes, or a logit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dalle_ppo.models.heads.head_layers import LayerSpec

SIGMOID = LayerSpec("activation", {"name": "sigmoid"})


@dataclass(frozen=True)
class Ending:
    """What is done to the model's outputs.

    unsafe_class: of a model with two outputs, the one that means unsafe; None for a model with one.
    sigmoid: the outputs are logits, which need a sigmoid (of two: of their difference).
    """

    unsafe_class: int | None = None
    sigmoid: bool = False

    def fold(self, layers: list[LayerSpec]) -> list[LayerSpec]:
        """The layers that end in one number, the model's probability or score.

        Source: softmax([a, b])[1] = sigmoid(b - a).

        Raises:
            ValueError: the model ends in something else than this ending says.
        """
        ends_in = layers[-1].options.get("name") if layers and layers[-1].type == "activation" else None
        outputs = _outputs(layers)
        if outputs != 2 and self.unsafe_class is not None:
            raise ValueError(
                f"--unsafe_class is for a model with two outputs, this one has {outputs}; leave it out"
            )
        if self.sigmoid and ends_in in ("softmax", "sigmoid", "hard_sigmoid"):
            raise ValueError(
                f"--final sigmoid is for a model that ends in logits, this one ends in a {ends_in}; "
                "leave it out"
            )
        if outputs != 2:
            return [*layers, SIGMOID] if self.sigmoid else layers
        if self.unsafe_class is None:
            raise ValueError(
                "the model has two outputs: say with --unsafe_class 0 or 1 which one means unsafe (Keras "
                "numbers the folders of image_dataset_from_directory in alphabetical order)"
            )
        before = layers[:-1] if ends_in == "softmax" else layers
        if not (ends_in == "softmax" or self.sigmoid) or before[-1].type != "dense":
            raise ValueError(
                "the model has two outputs without a softmax right after the last Dense; if they are logits, "
                "give --final sigmoid"
            )
        return [*before[:-1], self._difference(before[-1]), SIGMOID]

    def _difference(self, dense: LayerSpec) -> LayerSpec:
        unsafe, safe = self.unsafe_class, 1 - self.unsafe_class
        tensors = {
            key: t[..., unsafe : unsafe + 1] - t[..., safe : safe + 1] for key, t in dense.tensors.items()
        }
        return LayerSpec("dense", {}, {key: tensor.contiguous() for key, tensor in tensors.items()})

    def of_outputs(self, outputs: np.ndarray) -> np.ndarray:
        """The same for what the original computes: [B, n] to [B]."""
        if self.unsafe_class is None:
            return _sigmoid(outputs[:, 0]) if self.sigmoid else outputs[:, 0]
        if not self.sigmoid:
            return outputs[:, self.unsafe_class]
        return _sigmoid(outputs[:, self.unsafe_class] - outputs[:, 1 - self.unsafe_class])


AS_IT_IS = Ending()
"""The model ends in one number already."""


def _outputs(layers: list[LayerSpec]) -> int:
    dense = [layer for layer in layers if layer.type == "dense"]
    return dense[-1].tensors["kernel"].shape[1] if dense else 0


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.float32(1) / (np.float32(1) + np.exp(-logits))


def class_number(unsafe: str, classes: str | None) -> int:
    """The number of the unsafe class.

    Args:
        unsafe: "0", "1", or one of the names in `classes`.
        classes: the two names in the order of the outputs, with a comma between them; None if not given.

    Raises:
        ValueError: it names no class.
    """
    names = [name.strip() for name in (classes or "0,1").split(",")]
    if len(set(names)) != 2:
        raise ValueError(f"--classes is {classes}; it must be two names with a comma, such as safe,unsafe")
    if unsafe in names:
        return names.index(unsafe)
    if unsafe in ("0", "1"):
        return int(unsafe)
    known = " or ".join(names)
    hint = "" if classes else "; to give a name, say --classes safe,unsafe too, in the order of the outputs"
    raise ValueError(f"--unsafe_class is {unsafe}; it must be {known}{hint}")
