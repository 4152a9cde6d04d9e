"""Calls reward terms, including the user's own functions, and reads whatever they return."""

import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dalle_ppo.base.halving import is_out_of_memory
from dalle_ppo.rewards.base import RewardFailure, RewardResult, check_result

ACCEPTED = "a tensor, NumPy array, list or tuple of one number per image, (values, extras), or a RewardResult"
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def import_function(name: str) -> Callable:
    """The function that "my_module:my_function" names; one without parameters is called and must return it.

    Raises:
        ValueError: it does not exist; says which half of the name is wrong.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"reward.terms: {name!r} is not a function; write it as my_module:my_function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"reward.terms: module {module_name} of {name!r} cannot be imported ({error}); "
            "run from the folder that holds it, or install it"
        ) from error
    except Exception as error:  # whatever the user's own code raises on import
        raise ValueError(
            f"reward.terms: module {module_name} of {name!r} raised {type(error).__name__} while it was "
            f"imported: {text_of(error)}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"reward.terms: module {module_name} has no function {function_name}")
    if _parameters(function) == []:
        function = _made_by(function, name)
    return function


def _made_by(factory: Callable, name: str) -> Callable:
    """What a function without parameters returns: a reward, as in ddpo-pytorch."""
    try:
        made = factory()
    except Exception as error:
        raise ValueError(f"reward.terms: {name} raised {type(error).__name__}: {text_of(error)}") from error
    if not callable(made):
        raise ValueError(
            f"reward.terms: {name} takes no images and returned {type(made).__name__}; it must take "
            "(images, captions) or return a function that does"
        )
    return made


def adapted(function: Callable, label: str) -> Callable:
    """Adapts a function to `(images, captions, metadata)`, whether or not it takes metadata.

    It gets metadata if its third positional parameter has no default or is called metadata.

    Raises:
        ValueError: it takes neither `(images, captions)` nor `(images, captions, metadata)`.
    """
    parameters = _parameters(function)
    if parameters is None:  # it has no signature, like some compiled functions
        return lambda images, captions, metadata: function(images, captions)
    third = [p for p in parameters if p.kind in POSITIONAL][2:3]
    wants = any(p.default is inspect.Parameter.empty or p.name == "metadata" for p in third)
    try:
        inspect.Signature(parameters).bind(*[None] * (3 if wants else 2))
    except TypeError:
        taken = ", ".join(str(p) for p in parameters)
        raise ValueError(
            f"reward {label} takes ({taken}); it must take (images, captions) or (images, captions, metadata)"
        ) from None
    return function if wants else lambda images, captions, metadata: function(images, captions)


def _parameters(function: Callable) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def call(function: Callable, arguments: tuple[Any, ...], label: str) -> RewardResult:
    """Calls a term without gradients, as a network that scores images would keep its whole graph.

    Args:
        function: the term; takes `arguments`.
        arguments: images [B, 3, H, W], captions and metadata.
        label: what errors call the term.

    Raises:
        ValueError: it raised, with the line at fault in the message, or returned something unusable.
    """
    images = arguments[0]
    try:
        with torch.no_grad():
            returned = function(*arguments)
    except RewardFailure as error:
        raise ValueError(f"reward {label}: {error}") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise  # the caller may try with fewer images
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"reward {label} raised {type(error).__name__}: {text_of(error)} "
            f"({place.filename}, line {place.lineno})"
        ) from error
    return read_result(returned, len(images), images.device, label)


def read_result(returned: Any, num_images: int, device: torch.device, label: str) -> RewardResult:
    """Converts what a term returned to float32 tensors on `device`.

    Args:
        returned: one number per image as a tensor, NumPy array, list or tuple; a pair of that and extras; or
            a RewardResult of these. If the extras are a mapping, those with one finite number per image
            become parts; anything else is ignored.
        num_images: B.
        device: device of the images.
        label: what errors call the term.

    Raises:
        ValueError: it is none of these.
    """
    parts, extras, embeddings = {}, {}, None
    if isinstance(returned, RewardResult):
        returned, parts, embeddings = returned.total, returned.parts, returned.embeddings
    elif isinstance(returned, tuple) and len(returned) == 2 and not _is_number(returned[0]):
        returned, extras = returned
    tensors = {}
    for name, values in {"total": returned, **{f"part {name}": part for name, part in parts.items()}}.items():
        tensors[name] = _as_tensor(values, device)
        if tensors[name] is None:
            kind = type(values).__name__
            what = kind if name == "total" else f"{name} as {kind}"
            raise ValueError(f"reward {label} returned {what}; it must return {ACCEPTED}")
    total = tensors.pop("total")
    named = {str(name): tensor for name, tensor in zip(parts, tensors.values(), strict=True)}
    check_result(RewardResult(total, named), num_images, label)
    for name, values in extras.items() if isinstance(extras, Mapping) else ():
        tensor = _as_tensor(values, device)
        if tensor is not None and tensor.shape == (num_images,) and torch.isfinite(tensor).all():
            named[str(name)] = tensor
    return RewardResult(total, named, embeddings)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0
    return isinstance(value, int | float | np.generic)


def _as_tensor(values: Any, device: torch.device) -> Tensor | None:
    """Copies numbers into a float32 tensor; None if they are not numbers."""
    if isinstance(values, list | tuple) and any(isinstance(value, Tensor) for value in values):
        values = [value.tolist() if isinstance(value, Tensor) else value for value in values]
    if isinstance(values, Tensor):
        if values.is_complex():
            return None
        return values.detach().to(device, torch.float32, copy=True)
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        return None
    if array.dtype.kind not in "biuf":
        return None
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return torch.tensor(array.astype(np.float32), device=device)


def text_of(error: Exception) -> str:
    return " ".join(str(error).split())
