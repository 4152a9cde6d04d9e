#!/usr/bin/env bash
# safetensors 0.8.0, numpy 2.3.5.
# A write that fails, because the folder is gone or the file may not grow (as on a full
# disk), raises SafetensorError. That is no OSError and has no errno, so programs that
# catch OSError around their writes do not catch it. The number is in the text alone.
# Reading a file that is missing does raise an OSError, FileNotFoundError.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.3.5
cd "$work"
venv/bin/python - <<'PY'
import resource

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

tensors = {"a": np.zeros(30_000, dtype=np.float32)}


def error_of(call):
    try:
        call()
    except Exception as error:
        return error


gone = error_of(lambda: save_file(tensors, "gone/a.safetensors"))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
large = error_of(lambda: save_file(tensors, "a.safetensors"))
missing = error_of(lambda: load_file("missing.safetensors"))
for what, error in (("folder is gone", gone), ("file may not grow", large), ("reading", missing)):
    print(f"{what}: {type(error).__name__}, an OSError: {isinstance(error, OSError)}")
print(str(large))
if (type(gone) is not SafetensorError or type(large) is not SafetensorError or isinstance(large, OSError)
        or "os error 27" not in str(large) or not isinstance(missing, FileNotFoundError)):
    raise SystemExit("behaviour changed")
PY
