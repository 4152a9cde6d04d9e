#!/usr/bin/env bash
# hpsv2 1.2.0.
# The wheel holds its own copy of open_clip, whose tokenizer reads
# bpe_simple_vocab_16e6.txt.gz beside it. That file is not in the wheel, so scoring
# fails on a fresh install, although "import hpsv2" works.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" download --quiet --no-deps --only-binary :all: --dest "$work" hpsv2==1.2.0
cd "$work"
venv/bin/python - <<'PY'
import glob, zipfile

names = zipfile.ZipFile(glob.glob("hpsv2-1.2.0*.whl")[0]).namelist()
reads = [name for name in names if name.endswith("open_clip/tokenizer.py")]
vocabulary = [name for name in names if name.endswith(".txt.gz")]
text = zipfile.ZipFile(glob.glob("hpsv2-1.2.0*.whl")[0]).read(reads[0]).decode()
print("tokenizer:", reads[0])
print("it reads bpe_simple_vocab_16e6.txt.gz:", "bpe_simple_vocab_16e6.txt.gz" in text)
print("vocabularies in the wheel:", vocabulary)
if vocabulary or "bpe_simple_vocab_16e6.txt.gz" not in text:
    raise SystemExit("behaviour changed")
PY
