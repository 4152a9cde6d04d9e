#!/usr/bin/env bash
# open_clip_torch 3.3.0.
# The OpenAI CLIP weights were trained with QuickGELU. The package's own README
# says "All OpenAI pretrained weights will always default to QuickGELU".
# Yet create_model("ViT-B-32", pretrained="openai") builds nn.GELU and only warns.
# The same weights given as a file build nn.GELU with no warning at all.
# Only the name "ViT-B-32-quickgelu" gives QuickGELU, for the tag and for the file.
# Nothing is downloaded: a file of random weights stands in for the tag's file.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet open_clip_torch==3.3.0
cd "$work"
venv/bin/python - <<'PY'
import importlib.metadata, warnings
import torch, open_clip, open_clip.factory

readme = importlib.metadata.metadata("open_clip_torch").get_payload()
print("README says it:", "All OpenAI pretrained weights will always default to QuickGELU" in readme)
print("tag's own config: quick_gelu =",
      open_clip.get_pretrained_cfg("ViT-B-32", "openai")["quick_gelu"])

torch.save(open_clip.create_model("ViT-B-32-quickgelu").state_dict(), "weights.pt")
open_clip.factory.download_pretrained = lambda *args, **kwargs: "weights.pt"

seen = []
for name in ("ViT-B-32", "ViT-B-32-quickgelu"):
    for pretrained in ("openai", "weights.pt"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = open_clip.create_model(name, pretrained=pretrained)
        act = type(model.visual.transformer.resblocks[0].mlp.gelu).__name__
        warned = any("QuickGELU mismatch" in str(w.message) for w in caught)
        print(f"{name:18} pretrained={pretrained:10} -> {act:9} warning={warned}")
        seen.append((act, warned))
if seen != [("GELU", True), ("GELU", False), ("QuickGELU", False), ("QuickGELU", False)]:
    raise SystemExit("behaviour changed")
PY
