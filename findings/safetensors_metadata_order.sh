#!/usr/bin/env bash
# safetensors 0.8.0, numpy 2.4.6.
# Saving the same tensors with the same metadata does not give the same bytes.
# The tensors are written in a fixed order, but the keys of the metadata are not:
# their order changes from call to call, even inside one process.
# With one key of metadata the bytes are always the same. With six keys, 50 saves
# gave 48 or 49 different files. So a hash of the file does not identify its content.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PY'
import hashlib, json
import numpy as np
from safetensors.numpy import load, save

tensors = {"b": np.zeros(2), "a": np.ones(3)}
counts = {}
for n in (1, 6):
    metadata = {f"key{i}": "value" for i in range(n)}
    files = [save(tensors, metadata=metadata) for _ in range(50)]
    counts[n] = len({hashlib.sha256(f).hexdigest() for f in files})
    print(f"{n} key(s) of metadata: 50 saves, {counts[n]} different file(s)")
headers = [json.loads(f[8:8 + int.from_bytes(f[:8], "little")]) for f in files]
for h in headers[:2]:
    print("  ", *h["__metadata__"])
same = all(h == headers[0] for h in headers) and all(
    np.array_equal(load(f)[k], v) for f in files for k, v in tensors.items())
print("content is the same:", same)
if counts[1] != 1 or counts[6] < 2 or not same:
    raise SystemExit("behaviour changed")
PY
