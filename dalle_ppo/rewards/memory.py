"""What reward terms remember between calls, such as running means, so that a trial leaves no trace in it.

A term keeps such things in variables of its module, in variables of a function around it, or in attributes of
its own objects. They are copied before the trial and put back after it. Objects of other people's libraries
are left alone, as half of them would not survive it; of networks, buffers are put back and weights are not.
"""

import copy
import functools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, complex, str, bytes)
GENERATORS: dict[type, tuple[Callable, Callable]] = {
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state),
    random.Random: (random.Random.getstate, random.Random.setstate),
    np.random.RandomState: (np.random.RandomState.get_state, np.random.RandomState.set_state),
    np.random.Generator: (
        lambda generator: copy.deepcopy(generator.bit_generator.state),
        lambda generator, state: setattr(generator.bit_generator, "state", state),
    ),
}
"""How to read and set the state of random generators."""
MAX_BYTES = 1 << 26
"""A tensor or array that is larger holds weights or data, not statistics."""
MAX_ITEMS = 100_000
"""Of a container that is larger, the items' own contents are not copied."""


@contextmanager
def unremembered(functions: list[Callable]) -> Iterator[None]:
    """Puts back, at the end, what the functions' own variables and objects held at the start."""
    memories = [_Memory(function) for function in functions]
    try:
        yield
    finally:
        for memory in memories:
            memory.put_back()


class _Memory:
    """Copies of what a callable refers to, and how to put each one back.

    Args:
        function: the callable; code in its folder counts as its own.
    """

    def __init__(self, function: Callable) -> None:
        self._seen: dict[int, Any] = {}  # keeps what it has seen alive, so that no number is used twice
        self._undo: list[Callable[[], Any]] = []
        self._folder = _folder_of(_module_of(function))
        self._add(function)
        self._add_module(_module_of(function))

    def put_back(self) -> None:
        for undo in self._undo:
            undo()

    def _add(self, value: Any) -> None:
        """Copies what can be changed in a value, and in what belongs to it."""
        if value is None or isinstance(value, (*PLAIN, ModuleType, type)) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, functools.partial):
            self._add_all([value.func, *value.args, *value.keywords.values()])
        elif isinstance(value, MethodType):
            self._add_all([value.__self__, value.__func__])
        elif isinstance(value, FunctionType):
            self._add_function(value)
        elif isinstance(value, Tensor | np.ndarray):
            self._add_array(value)
        elif isinstance(value, dict | list | set | deque):
            self._add_container(value)
        elif isinstance(value, tuple):
            self._add_all(value)
        elif isinstance(value, nn.Module):
            self._add_network(value)
        elif type(value) in GENERATORS:
            get, put = GENERATORS[type(value)]
            self._undo.append(functools.partial(put, value, get(value)))
        elif self._is_own(type(value)):
            self._add_names(getattr(value, "__dict__", {}))

    def _add_all(self, values: Any) -> None:
        for value in values:
            self._add(value)

    def _is_own(self, thing: Any) -> bool:
        folder = _folder_of(_module_of(thing))
        return folder is not None and self._folder is not None and folder.is_relative_to(self._folder)

    def _add_function(self, function: FunctionType) -> None:
        if not self._is_own(function):
            return
        for cell in function.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:  # not set yet
                continue
            self._add(held)
            if held is not None:
                self._undo.append(functools.partial(setattr, cell, "cell_contents", held))
        self._add_names(vars(function))
        self._add_module(_module_of(function))

    def _add_module(self, name: str) -> None:
        module = sys.modules.get(name)
        if self._folder is not None and id(module) not in self._seen:
            self._seen[id(module)] = module
            self._add_names(vars(module))

    def _add_names(self, names: dict[str, Any], only: Callable[[str], bool] = lambda name: True) -> None:
        """Copies named values. What is None may be loaded meanwhile, and is not loaded twice."""
        for name, held in list(names.items()):
            if held is None or isinstance(held, ModuleType | type) or name.startswith("__") or not only(name):
                continue
            self._add(held)
            self._undo.append(functools.partial(names.__setitem__, name, held))

    def _add_network(self, network: nn.Module) -> None:
        for buffer in network.buffers():
            self._add(buffer)
        for module in network.modules():
            if self._is_own(type(module)):
                self._add_names(vars(module), only=lambda name: name[0] != "_")

    def _add_array(self, value: Tensor | np.ndarray) -> None:
        if value.nbytes <= MAX_BYTES:
            kept = value.detach().clone() if isinstance(value, Tensor) else value.copy()
            self._undo.append(functools.partial(_fill, value, kept))

    def _add_container(self, value: Any) -> None:
        kept = copy.copy(value)
        if len(value) <= MAX_ITEMS:
            self._add_all(value.values() if isinstance(value, dict) else value)
        refill = value.update if isinstance(value, dict | set) else value.extend
        self._undo += [value.clear, functools.partial(refill, kept)]


def _module_of(thing: Any) -> str:
    """The module where a function, method or class was written, or the class of an object."""
    if isinstance(thing, functools.partial):
        return _module_of(thing.func)
    return (thing if isinstance(thing, FunctionType | MethodType | type) else type(thing)).__module__


def _folder_of(module: str) -> Path | None:
    """The folder of a module's file; None if it has none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file).resolve().parent if file else None


@torch.no_grad()
def _fill(value: Tensor | np.ndarray, kept: Tensor | np.ndarray) -> None:
    if isinstance(value, Tensor):
        value.copy_(kept)
    elif value.flags.writeable:
        value[...] = kept
