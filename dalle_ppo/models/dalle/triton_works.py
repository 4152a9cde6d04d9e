"""Whether this machine can build and run Triton kernels."""

import importlib.util
import warnings
from functools import cache

from dalle_ppo.base.one_line import one_line


@cache
def triton_works() -> bool:
    """Whether Triton, which comes with torch on Linux, can build what it runs on this machine's GPU.

    It needs a C compiler and Python's headers, and says so in errors of many types. Tried once; where it
    fails, a warning says why the sampler is slower.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        from triton.runtime import driver

        driver.active.get_current_target()  # compiles a small C file
    except Exception as error:
        warnings.warn(
            f"Triton does not work here ({one_line(error)}), so images are sampled more slowly; it needs a C "
            "compiler and Python's headers (python3-dev)",
            stacklevel=2,
        )
        return False
    return True
