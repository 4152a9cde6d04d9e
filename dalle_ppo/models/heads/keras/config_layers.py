"""Builds our layers from a Keras model's JSON configuration and weights. No Keras, no code from the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dalle_ppo.models.heads.head_layers import ACTIVATIONS, LayerSpec
from dalle_ppo.models.heads.keras.chain import Chain, check_width
from dalle_ppo.models.heads.keras.config_chain import Layer, Path, check_modules, flat_chain, input_width

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
# From this epsilon on Keras 2 computes a LayerNormalization with its fused batch normalisation.
KERAS2_FUSED_EPSILON = 1.001e-5

# Keras' name of an activation -> our name, and its options with the defaults of Keras' function.
ACTIVATION_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ACTIVATIONS},
    "swish": ("silu", {}),
    "leaky_relu": ("leaky_relu", {"negative_slope": 0.2}),
}
# Policies with float32 weights and rounded results -> what they round to.
MIXED = {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}

Weights = Callable[[Path], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class _KerasLayer:
    """One layer, with its weights by name or number in Keras' order.

    Names with a `/` are weights of an activation layer that it holds.
    """

    name: str
    kind: str
    config: Layer
    weights: Mapping[str, np.ndarray]
    width: int
    keras_version: str

    @property
    def arrays(self) -> list[np.ndarray]:
        """The layer's own weights, without those of an activation layer that it holds."""
        return [np.asarray(array) for key, array in self.weights.items() if "/" not in key]


def layers_from_config(model: Layer, weights: Weights, keras_version: str) -> Chain:
    """Translate a Sequential or a functional chain, entering nested ones.

    Args:
        model: the model's configuration as Keras writes it.
        weights: finds the weights of the layer with this path (see `flat_chain`), in Keras' order.
        keras_version: tells Keras 2 from 3 where they differ.

    Raises:
        ValueError: the model is not a chain of known layers; names what does not fit.
    """
    check_modules(model)
    chain = flat_chain(model)
    specs: list[LayerSpec] = []
    dimension = width = check_width(input_width(chain))
    rounding = ""
    for path, layer in chain:
        name, kind, config = "/".join(path), layer["class_name"], layer["config"]
        rounding = max(rounding, _rounding(name, kind, config), key=("", "float16", "bfloat16", "int8").index)
        if kind in IDENTITY:
            continue
        own = _KerasLayer(name, kind, config, weights(path), width, keras_version)
        specs += _LAYERS.get(kind, _activation_layer)(own)
        if kind == "Dense":
            width = config["units"]
    return Chain(specs, dimension, rounding)


def _rounding(name: str, kind: str, config: Layer) -> str:
    """What a layer rounds its results to; "" for float32.

    Raises:
        ValueError: its weights are not float32, or stored in a form that is not read here.
    """
    policy = config.get("dtype") or "float32"
    if isinstance(policy, dict):
        policy = policy["config"].get("name") or policy["config"].get("mode")
    if config.get("lora_rank"):
        raise ValueError(f"layer {name} has LoRA weights: merge them before saving")
    if str(policy).split("_from_")[0] == "int8" and kind == "Dense":
        return "int8"
    if config.get("quantization_config") or "int" in str(policy) or "float8" in str(policy):
        raise ValueError(
            f"layer {name} ({kind}) is quantised to {policy}: of quantised layers only Dense in int8 is "
            "supported; convert the model as it was before quantising"
        )
    if kind == "InputLayer" or policy == "float32":
        return ""
    if policy not in MIXED:
        raise ValueError(
            f"layer {name} computes in {policy}: only float32, mixed_float16 and mixed_bfloat16 are supported"
        )
    return MIXED[policy]


def _tensors(layer: _KerasLayer, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Name a layer's arrays and check their shapes."""
    arrays = layer.arrays
    found = [array.shape for array in arrays]
    if found != list(shapes.values()):
        raise ValueError(f"layer {layer.name} has weights of shapes {found}, needs {shapes}")
    return {
        key: torch.from_numpy(np.array(a, dtype=np.float32)) for key, a in zip(shapes, arrays, strict=True)
    }


def _dense(layer: _KerasLayer) -> list[LayerSpec]:
    config = layer.config
    units = config["units"]
    bias = {"bias": (units,)} if config["use_bias"] else {}
    if any(array.dtype == np.int8 for array in layer.arrays):
        layer = replace(layer, weights=_dequantised(layer))
    spec = LayerSpec("dense", {}, _tensors(layer, kernel=(layer.width, units), **bias))
    return [spec, *_activation(layer, config.get("activation"), units)]


def _dequantised(layer: _KerasLayer) -> dict[str, np.ndarray]:
    """The weights with an int8 kernel divided by its scale, as Keras divides its results.

    Source: keras/src/layers/core/dense.py, `_int8_call` and `save_own_variables`.
    """
    named = {key: np.asarray(array) for key, array in layer.weights.items()}
    if "kernel_scale" not in named:  # a .keras file numbers them: kernel, bias if there is one, scale
        names = ["kernel", *(["bias"] if layer.config["use_bias"] else []), "kernel_scale"]
        own = [key for key in named if "/" not in key]
        if len(own) != len(names):
            raise ValueError(f"layer {layer.name} has {len(own)} weights, needs {', '.join(names)}")
        named = {names[own.index(k)] if k in own else k: array for k, array in named.items()}
    kernel = named.pop("kernel").astype(np.float32) / named.pop("kernel_scale")
    return {"kernel": kernel, **named}


def _normalization(layer: _KerasLayer) -> list[LayerSpec]:
    """(x - mean) / max(sqrt(variance), 1e-7); constant ones are in the configuration."""
    name, config, arrays, width = layer.name, layer.config, layer.arrays, layer.width
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
    return [LayerSpec("normalization", {}, {"mean": torch.tensor(mean), "scale": torch.tensor(scale)})]


def _constant(value: Any) -> np.ndarray:
    """A number, a list, or one of Keras' JSON forms of an array."""
    if isinstance(value, dict):
        value = value["config"]["value"] if "config" in value else value["value"]
    return np.asarray(value, dtype=np.float32)


def _rescaling(layer: _KerasLayer) -> list[LayerSpec]:
    constants = {"scale": layer.config["scale"], "shift": layer.config.get("offset", 0.0)}
    width = (layer.width,)
    full = {key: np.array(np.broadcast_to(_constant(value), width)) for key, value in constants.items()}
    return [LayerSpec("scale_shift", {}, {key: torch.from_numpy(array) for key, array in full.items()})]


def _batch_normalization(layer: _KerasLayer) -> list[LayerSpec]:
    """Source: tf.nn.batch_normalization, whose order of operations this keeps."""
    config = layer.config
    if not _on_last_axis(config) or config.get("renorm"):
        raise ValueError(
            f"layer {layer.name} is a BatchNormalization with axis={config.get('axis')} or renorm"
        )
    shapes = {key: (layer.width,) for key in [*_scale_and_centre(config), "mean", "variance"]}
    t = _tensors(layer, **shapes)
    scale = torch.rsqrt(t["variance"] + config["epsilon"])
    if "gamma" in t:
        scale = scale * t["gamma"]
    shift = t["beta"] - t["mean"] * scale if "beta" in t else -t["mean"] * scale
    return [LayerSpec("scale_shift", {}, {"scale": scale, "shift": shift})]


def _on_last_axis(config: Layer) -> bool:
    return config.get("axis", -1) in (-1, 1, [-1], [1])


def _scale_and_centre(config: Layer) -> list[str]:
    return [key for key, used in (("gamma", config["scale"]), ("beta", config["center"])) if used]


def _layer_normalization(layer: _KerasLayer) -> list[LayerSpec]:
    config = layer.config
    if not _on_last_axis(config) or config.get("rms_scaling"):
        raise ValueError(
            f"layer {layer.name} is a LayerNormalization with axis={config.get('axis')} or rms_scaling"
        )
    shapes = {key: (layer.width,) for key in _scale_and_centre(config)}
    options: dict[str, Any] = {"epsilon": float(config["epsilon"])}
    if layer.keras_version.startswith("2") and options["epsilon"] >= KERAS2_FUSED_EPSILON:
        options["centred"] = True
    return [LayerSpec("layer_norm", options, _tensors(layer, **shapes))]


def _rms_normalization(layer: _KerasLayer) -> list[LayerSpec]:
    config = layer.config
    if not _on_last_axis(config):
        raise ValueError(f"layer {layer.name} is an RMSNormalization with axis={config.get('axis')}")
    scale = _tensors(layer, scale=(layer.width,))
    shift = {"shift": torch.zeros(layer.width)}
    return [
        LayerSpec("rms_norm", {"epsilon": float(config["epsilon"])}),
        LayerSpec("scale_shift", {}, {**scale, **shift}),
    ]


def _unit_normalization(layer: _KerasLayer) -> list[LayerSpec]:
    if not _on_last_axis(layer.config):
        raise ValueError(f"layer {layer.name} is a UnitNormalization with axis={layer.config.get('axis')}")
    largest = 1e6 if layer.keras_version.startswith("2") else 1e12  # epsilon bounds the square, or the length
    return [LayerSpec("unit_norm", {"largest": largest})]


_LAYERS: dict[str, Callable[[_KerasLayer], list[LayerSpec]]] = {
    "Dense": _dense,
    "Normalization": _normalization,
    "Rescaling": _rescaling,
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization,
    "UnitNormalization": _unit_normalization,
}


def _activation_layer(layer: _KerasLayer) -> list[LayerSpec]:
    """Layers that consist of one activation."""
    name, kind, config = layer.name, layer.kind, layer.config
    if kind == "Activation":
        return _activation(layer, config["activation"], layer.width)
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
    if kind == "PReLU":
        shared = config.get("shared_axes") in (1, [1])
        return [LayerSpec("prelu", {}, _tensors(layer, slope=(1,) if shared else (layer.width,)))]
    if kind == "ELU":
        return [LayerSpec("activation", {"name": "elu", "alpha": float(_constant(config["alpha"]))})]
    if kind == "Softmax" and config.get("axis", -1) in (-1, 1):
        return [LayerSpec("activation", {"name": "softmax"})]
    raise ValueError(f"layer {name} is a {kind}, which is not supported")


def _activation(layer: _KerasLayer, activation: Any, width: int) -> list[LayerSpec]:
    """An activation by Keras' name or as a layer of its own; custom and lambda ones are rejected."""
    if activation in (None, "linear"):
        return []
    if isinstance(activation, dict) and isinstance(activation.get("config"), dict):
        kind = activation["class_name"]
        if kind in ("ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "Activation"):
            name = f"{layer.name} (activation)"
            _rounding(name, kind, activation["config"])
            weights = {key.rpartition("/")[2]: array for key, array in layer.weights.items() if "/" in key}
            inner = replace(
                layer, name=name, kind=kind, config=activation["config"], weights=weights, width=width
            )
            return _activation_layer(inner)
    known = isinstance(activation, str) and activation in ACTIVATION_NAMES
    # Keras 2 computes hard_sigmoid with a different slope.
    if not known or (activation == "hard_sigmoid" and layer.keras_version.startswith("2")):
        shown = activation if isinstance(activation, str) else activation.get("class_name", activation)
        raise ValueError(f"layer {layer.name} has activation {shown}, which is not supported")
    ours, options = ACTIVATION_NAMES[activation]
    return [LayerSpec("activation", {"name": ours, **options})]
