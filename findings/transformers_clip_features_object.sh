#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0.
# CLIPModel.get_image_features returns a BaseModelOutputWithPooling, not a tensor
# (4.57.6 returned the tensor). The usual next line, features / features.norm(...),
# fails with AttributeError. features[0] does not fail, but it is the wrong thing:
# the hidden states of all patches. The embedding is features.pooler_output, already
# projected (8 wide here), while vision_model(...).pooler_output is not (24 wide).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet transformers==5.24.0 torch==2.13.0
cd "$work"
venv/bin/python - <<'PY'
import torch
from transformers import CLIPConfig, CLIPModel

size = dict(intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
text = dict(size, hidden_size=16, vocab_size=50, max_position_embeddings=8,
            bos_token_id=48, eos_token_id=49)
vision = dict(size, hidden_size=24, image_size=16, patch_size=8)
model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
pixels = torch.rand(2, 3, 16, 16)
with torch.no_grad():
    out = model.get_image_features(pixel_values=pixels)
    inner = model.vision_model(pixel_values=pixels)
print("returned:", type(out).__name__)
try:
    out / out.norm(dim=-1, keepdim=True)
    error = None
except AttributeError as e:
    error = str(e)
print("normalising it:", error)
shapes = [tuple(t.shape) for t in (out[0], out.pooler_output, inner.pooler_output)]
print("out[0], out.pooler_output, vision_model's pooler_output:", *shapes)
if (torch.is_tensor(out) or error is None or shapes != [(2, 5, 24), (2, 8), (2, 24)]
        or not torch.equal(model.visual_projection(inner.pooler_output), out.pooler_output)):
    raise SystemExit("behaviour changed")
PY
