"""Lays the configuration of a Keras model out as one chain of layers; nested models are entered."""

from __future__ import annotations

from typing import Any

Layer = dict[str, Any]
Path = tuple[str, ...]

MODELS = ("Sequential", "Functional", "Model")


def flat_chain(model: Layer, around: Path = ()) -> list[tuple[Path, Layer]]:
    """The layers from input to output, those of nested models in the place of the model.

    Args:
        model: the model's configuration as Keras writes it.
        around: names of the models around it.

    Returns:
        Each layer's configuration, with its name after the names of the nested models around it.

    Raises:
        ValueError: the model is not a chain, or holds a custom class; names what does not fit.
    """
    flat: list[tuple[Path, Layer]] = []
    for layer in _chain(model):
        _check_class(layer)
        path = (*around, layer_name(layer))
        flat += flat_chain(layer, path) if layer["class_name"] in MODELS else [(path, layer)]
    return flat


def layer_name(layer: Layer) -> str:
    """A layer's name: Keras' functional format repeats it outside the configuration."""
    config = layer["config"]
    own = config.get("name") if isinstance(config, dict) else None
    return own or layer.get("name", layer["class_name"])


def layers_of(model: Layer) -> list[Layer]:
    """The layers of a model in the order in which its configuration lists them."""
    config = model["config"]
    return config["layers"] if isinstance(config, dict) else config


def _chain(model: Layer) -> list[Layer]:
    """The layers from input to output."""
    kind, config = model["class_name"], model["config"]
    if kind == "Sequential":
        return layers_of(model)
    if kind not in MODELS:
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


def input_width(chain: list[tuple[Path, Layer]]) -> int:
    """Width of the embedding, from whichever layer states it.

    Raises:
        ValueError: none does, or the input is not [batch, width].
    """
    for path, layer in chain:
        config, build = layer["config"], layer.get("build_config") or {}
        given = (config.get("batch_shape"), config.get("batch_input_shape"), build.get("input_shape"))
        shapes = [shape for shape in given if shape and shape[-1] is not None]
        if shapes and len(shapes[0]) != 2:
            raise ValueError(f"layer {'/'.join(path)} takes shape {shapes[0]}: it needs [batch, width]")
        if shapes:
            return int(shapes[0][1])
    raise ValueError("the model does not state the width of its input: build it before saving it")


def _check_class(layer: Layer) -> None:
    """Reject custom classes, before looking at the class name."""
    module, registered = layer.get("module"), layer.get("registered_name")
    package = (registered or "").rpartition(">")[0]
    foreign = module is not None and module.split(".")[0] not in ("keras", "tf_keras")
    if foreign or package not in ("", "keras", "Keras"):
        where = registered or module
        raise ValueError(
            f"layer {layer_name(layer)} is a custom {layer['class_name']} ({where}), which is not supported"
        )


def check_modules(config: Any) -> None:
    """Reject any reference to code outside Keras, anywhere in the configuration.

    When Keras loads the file, as `--verify` makes it do, it imports what such a reference names.

    Raises:
        ValueError: there is one, or AutoKeras' layer of category tables; names it.
    """
    if isinstance(config, list):
        for value in config:
            check_modules(value)
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
            check_modules(value)
