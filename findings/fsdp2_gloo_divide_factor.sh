#!/usr/bin/env bash
# torch 2.14.1.
# With FSDP2 on CPUs (gloo), set_gradient_divide_factor(1.0), which asks for the sum of
# the gradients, fails in the backward pass in float32 and bfloat16: "Cannot use
# ReduceOp.PREMUL_SUM with Gloo". The default and a factor equal to the number of
# processes work, and so does float64 with any factor, so a test in float64 does not see
# it. set_force_sum_reduction_for_comms(True) makes every factor work.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1
cat > "$work/two.py" <<'PY'
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def gradient(dtype, factor, force):
    layer = torch.nn.Linear(4, 2, bias=False, dtype=dtype)
    fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    layer.set_gradient_divide_factor(factor)
    layer.set_force_sum_reduction_for_comms(force)
    try:
        layer(torch.ones(1, 4, dtype=dtype)).sum().backward()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return layer.weight.grad.full_tensor()[0, 0].item()


dist.init_process_group("gloo")
asked = [(torch.float32, 2.0, False), (torch.float64, 1.0, False), (torch.float32, 1.0, True),
         (torch.float32, 1.0, False)]
found = [gradient(*each) for each in asked]  # each process's gradient is 1
if dist.get_rank() == 0:
    for (dtype, factor, force), result in zip(asked, found):
        print(f"{dtype}, divide by {factor:g}, force the sum {force}: {result}")
dist.destroy_process_group()
if found[:3] != [1.0, 2.0, 2.0] or "PREMUL_SUM" not in str(found[3]):
    raise SystemExit("behaviour changed")
PY
cd "$work"
venv/bin/torchrun --nproc_per_node 2 two.py
