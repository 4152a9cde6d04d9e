#!/usr/bin/env bash
# keras 3.15.1 with the jax 0.7.2 backend.
# Under the policy mixed_float16 a layer's variables stay float32, so one expects
# the statistics of a Normalization layer to be safe. They are not: it computes with
# a float16 copy. A variance above 65504 (a standard deviation above 256) becomes inf,
# and every output is 0, without an error or a warning.
# BatchNormalization with the very same statistics and policy is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1 KERAS_BACKEND=jax JAX_PLATFORMS=cpu
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet keras==3.15.1 jax==0.7.2
cd "$work"
venv/bin/python - <<'PY'
import warnings
import numpy as np, keras

x = np.array([[0.0], [350.0], [700.0]], "float32")
seen = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for policy in ("float32", "mixed_float16"):
        keras.mixed_precision.set_global_policy(policy)
        norm = keras.layers.Normalization()
        norm.adapt(x)
        batch = keras.layers.BatchNormalization()
        batch.build(x.shape)
        batch.set_weights([np.ones(1), np.zeros(1), x.mean(axis=0), x.var(axis=0)])
        a, b = (keras.ops.convert_to_numpy(l(x)).astype("float32").ravel() for l in (norm, batch))
        print(f"{policy}: variance kept as {norm.variance.dtype}: {norm.variance.ravel()}")
        print("   Normalization     ", a, "\n   BatchNormalization", b)
        seen[policy] = a, b
caught = [w for w in caught if issubclass(w.category, RuntimeWarning)]
print("warnings about numbers:", len(caught))
right = np.array([-1.2247, 0, 1.2247])
ok = [np.allclose(v, right, atol=1e-2) for v in (*seen["float32"], seen["mixed_float16"][1])]
if not all(ok) or seen["mixed_float16"][0].any() or caught:
    raise SystemExit("behaviour changed")
PY
