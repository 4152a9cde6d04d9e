"""Builds our layers from a Keras model's JSON configuration and weights. No Keras, no code from the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dalle_ppo.models.heads.head_layers import ACTIVATIONS, LayerSpec

# Layers that do nothing at inference.
IDENTITY = {
    "InputLayer",
    "Dropout",
    "AlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
    "ActivityRegularization",
}
KERAS_EPSILON = np.float32(1e-7)

# Keras' name of an activation -> our name, and its options with the defaults of Keras' function.
ACTIVATION_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ACTIVATIONS},
    "swish": ("silu", {}),
    "leaky_relu": ("leaky_relu", {"negative_slope": 0.2}),
}

Weights = Mapping[str, Sequence[np.ndarray]]
Layer = dict[str, Any]


def layers_from_config(model: Layer, weights: Weights, keras_version: str) -> tuple[list[LayerSpec], int]:
    """Translate a Sequential or a functional chain.

    Args:
        model: the model's configuration as Keras writes it.
        weights: by layer name, the layer's arrays in Keras' order.
        keras_version: tells Keras 2 from 3 where they differ.

    Returns:
        The layers in order, and the width of the input.

    Raises:
        ValueError: the model is not a chain of known layers; names what does not fit.
    """
    _check_modules(model)
    chain = _chain(model)
    specs: list[LayerSpec] = []
    dimension = _input_width(chain)
    width = dimension
    for layer in chain:
        name, kind, config = _name(layer), layer["class_name"], layer["config"]
        _check_plain(layer)
        arrays = [np.asarray(array) for array in weights.get(name, ())]
        if kind == "Dense":
            new = _dense(name, config, arrays, width, keras_version)
            width = new[0].tensors["kernel"].shape[1]
        elif kind == "Normalization":
            new = [_normalization(name, config, arrays, width)]
        elif kind == "BatchNormalization":
            new = [_batch_normalization(name, config, arrays, width)]
        elif kind in IDENTITY:
            new = []
        else:
            new = _activation_layer(name, kind, config, keras_version)
        specs += new
    return specs, dimension


def _name(layer: Layer) -> str:
    """A layer's name: Keras' functional format repeats it outside the configuration."""
    return layer["config"].get("name", layer.get("name", layer["class_name"]))


def _chain(model: Layer) -> list[Layer]:
    """The layers from input to output."""
    kind, config = model["class_name"], model["config"]
    if kind == "Sequential":
        return config["layers"] if isinstance(config, dict) else config
    if kind not in ("Functional", "Model"):
        raise ValueError(f"the model is a {kind}: only Sequential and functional models are supported")
    layers = {layer["name"]: layer for layer in config["layers"]}
    outputs, inputs = _keras_names(config["output_layers"]), _keras_names(config["input_layers"])
    if len(outputs) != 1 or len(inputs) != 1:
        raise ValueError(f"the model has inputs {inputs} and outputs {outputs}: it needs one of each")
    chain = [layers[outputs[0]]]
    while chain[-1]["inbound_nodes"]:
        layer = chain[-1]
        sources = _keras_names(layer["inbound_nodes"])
        if len(sources) != 1 or len(chain) > len(layers):
            raise ValueError(
                f"layer {layer['name']} ({layer['class_name']}) reads {sources}: "
                "only a chain of layers is supported"
            )
        chain.append(layers[sources[0]])
    if len(chain) != len(layers):
        unused = sorted(set(layers) - {layer["name"] for layer in chain})
        raise ValueError(
            f"layers {unused} are not on the path from input to output: only a chain of layers is supported"
        )
    return chain[::-1]


def _keras_names(node: Any) -> list[str]:
    """Names of the layers in nested Keras tensor references, `["name", 0, 0]` or `keras_history`."""
    if isinstance(node, dict):
        if "keras_history" in node:
            return [node["keras_history"][0]]
        return [name for value in node.values() for name in _keras_names(value)]
    if isinstance(node, list):
        if len(node) >= 3 and isinstance(node[0], str) and isinstance(node[1], int):
            return [node[0]]
        return [name for value in node for name in _keras_names(value)]
    return []


def _input_width(chain: list[Layer]) -> int:
    """Width of the embedding, from whichever layer states it."""
    for layer in chain:
        config, build = layer["config"], layer.get("build_config") or {}
        given = (config.get("batch_shape"), config.get("batch_input_shape"), build.get("input_shape"))
        shapes = [shape for shape in given if shape and shape[-1] is not None]
        if shapes and len(shapes[0]) != 2:
            raise ValueError(f"layer {_name(layer)} takes shape {shapes[0]}: it needs [batch, width]")
        if shapes:
            return int(shapes[0][1])
    raise ValueError("the model does not state the width of its input: build it before saving it")


def _check_plain(layer: Layer) -> None:
    """Reject custom classes and number formats other than float32, before looking at the class name."""
    module, registered = layer.get("module"), layer.get("registered_name")
    package = (registered or "").rpartition(">")[0]
    if (module is not None and module.split(".")[0] != "keras") or package not in ("", "keras", "Keras"):
        where = registered or module
        raise ValueError(
            f"layer {_name(layer)} is a custom {layer['class_name']} ({where}), which is not supported"
        )
    config = layer["config"]
    dtype = config.get("dtype", "float32")
    dtype = dtype["config"]["name"] if isinstance(dtype, dict) else dtype
    if layer["class_name"] != "InputLayer" and dtype not in ("float32", None):
        raise ValueError(f"layer {_name(layer)} computes in {dtype}: only float32 is supported")
    if config.get("quantization_config") or config.get("lora_rank"):
        raise ValueError(f"layer {_name(layer)} is quantised or has LoRA weights: merge them before saving")


def _check_modules(config: Any) -> None:
    """Reject any reference to code outside Keras, anywhere in the configuration.

    When Keras loads the file, as `--verify` makes it do, it imports what such a reference names.
    """
    if isinstance(config, list):
        for value in config:
            _check_modules(value)
    if not isinstance(config, dict):
        return
    module, name = config.get("module"), config.get("class_name")
    if str(name).rpartition(">")[2] == "MultiCategoryEncoding":  # Keras 2 writes Custom>MultiCategoryEncoding
        raise ValueError(
            "the model holds AutoKeras' MultiCategoryEncoding, whose tables are read only from SavedModels: "
            "load it where AutoKeras is installed and export it as a SavedModel"
        )
    known = module is None or str(module).split(".")[0] in ("keras", "tf_keras", "builtins")
    if not known or name in ("__lambda__", "Lambda", "function"):
        raise ValueError(f"the model refers to {name} of {module}: code is not supported")
    for key, value in config.items():
        if key != "compile_config":  # never read, by us or when verifying
            _check_modules(value)


def _tensors(name: str, arrays: list[np.ndarray], **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Name a layer's arrays and check their shapes."""
    found = [array.shape for array in arrays]
    if found != list(shapes.values()):
        raise ValueError(f"layer {name} has weights of shapes {found}, needs {shapes}")
    return {
        key: torch.from_numpy(np.array(a, dtype=np.float32)) for key, a in zip(shapes, arrays, strict=True)
    }


def _dense(
    name: str, config: Layer, arrays: list[np.ndarray], width: int, keras_version: str
) -> list[LayerSpec]:
    units = config["units"]
    bias = {"bias": (units,)} if config["use_bias"] else {}
    spec = LayerSpec("dense", {}, _tensors(name, arrays, kernel=(width, units), **bias))
    return [spec, *_activation(name, config.get("activation"), keras_version)]


def _normalization(name: str, config: Layer, arrays: list[np.ndarray], width: int) -> LayerSpec:
    """(x - mean) / max(sqrt(variance), 1e-7); constant ones are in the configuration."""
    axis = config.get("axis", -1)
    per_column = axis not in (None, [], ())
    if config.get("invert") or (per_column and axis not in (-1, 1, [-1], [1])):
        raise ValueError(f"layer {name} is a Normalization with {axis=}, invert={config.get('invert')}")
    if config.get("mean") is not None:
        constants = [_constant(config[key]) for key in ("mean", "variance")]
        mean, variance = (np.broadcast_to(np.squeeze(c), (width,)) for c in constants)
    else:
        shape = (width,) if per_column else ()
        if len(arrays) < 2 or any(array.shape != shape for array in arrays[:2]):
            found = [array.shape for array in arrays]
            raise ValueError(f"layer {name} has weights of shapes {found}, needs mean and variance {shape}")
        mean, variance = (np.broadcast_to(array, (width,)) for array in arrays[:2])
    mean, variance = mean.astype(np.float32), variance.astype(np.float32)
    scale = np.maximum(np.sqrt(variance), KERAS_EPSILON)
    return LayerSpec("normalization", {}, {"mean": torch.tensor(mean), "scale": torch.tensor(scale)})


def _constant(value: Any) -> np.ndarray:
    """A number, a list, or one of Keras' JSON forms of an array."""
    if isinstance(value, dict):
        value = value["config"]["value"] if "config" in value else value["value"]
    return np.asarray(value, dtype=np.float32)


def _batch_normalization(name: str, config: Layer, arrays: list[np.ndarray], width: int) -> LayerSpec:
    """Source: tf.nn.batch_normalization, whose order of operations this keeps."""
    if config.get("axis", -1) not in (-1, 1, [-1], [1]) or config.get("renorm"):
        raise ValueError(f"layer {name} is a BatchNormalization with axis={config.get('axis')} or renorm")
    names = [key for key, used in (("gamma", config["scale"]), ("beta", config["center"])) if used]
    shapes = {key: (width,) for key in [*names, "mean", "variance"]}
    t = _tensors(name, arrays, **shapes)
    scale = torch.rsqrt(t["variance"] + config["epsilon"])
    if "gamma" in t:
        scale = scale * t["gamma"]
    shift = t["beta"] - t["mean"] * scale if "beta" in t else -t["mean"] * scale
    return LayerSpec("scale_shift", {}, {"scale": scale, "shift": shift})


def _activation_layer(name: str, kind: str, config: Layer, keras_version: str) -> list[LayerSpec]:
    """Layers that consist of one activation."""
    if kind == "Activation":
        return _activation(name, config["activation"], keras_version)
    if kind == "ReLU":
        slope, top, threshold = (config.get(key) for key in ("negative_slope", "max_value", "threshold"))
        slope = float(_constant(slope or 0))
        top = None if top is None else float(_constant(top))
        if not float(_constant(threshold or 0)) and top in (None, 6) and (top is None or not slope):
            if slope:
                return [LayerSpec("activation", {"name": "leaky_relu", "negative_slope": slope})]
            return [LayerSpec("activation", {"name": "relu" if top is None else "relu6"})]
        raise ValueError(f"layer {name} is a ReLU with {slope=}, max_value={top} or a threshold")
    if kind == "LeakyReLU":
        slope = config.get("negative_slope", config.get("alpha"))
        return [LayerSpec("activation", {"name": "leaky_relu", "negative_slope": float(_constant(slope))})]
    if kind == "ELU":
        return [LayerSpec("activation", {"name": "elu", "alpha": float(_constant(config["alpha"]))})]
    if kind == "Softmax" and config.get("axis", -1) in (-1, 1):
        return [LayerSpec("activation", {"name": "softmax"})]
    raise ValueError(f"layer {name} is a {kind}, which is not supported")


def _activation(name: str, activation: Any, keras_version: str) -> list[LayerSpec]:
    """An activation by Keras' name; custom and lambda ones are objects and are rejected."""
    if activation in (None, "linear"):
        return []
    known = isinstance(activation, str) and activation in ACTIVATION_NAMES
    # Keras 2 computes hard_sigmoid with a different slope.
    if not known or (activation == "hard_sigmoid" and keras_version.startswith("2")):
        shown = activation if isinstance(activation, str) else activation.get("class_name", activation)
        raise ValueError(f"layer {name} has activation {shown}, which is not supported")
    ours, options = ACTIVATION_NAMES[activation]
    return [LayerSpec("activation", {"name": ours, **options})]
