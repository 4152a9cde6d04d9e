#!/usr/bin/env bash
# bert-score 0.3.13 with transformers 5.24.0.
# A tokenizer that states no maximum length has model_max_length = int(1e30).
# BERTScorer passes it on as max_length, and the fast tokenizers of transformers 5
# raise OverflowError. Setting the tokenizer's model_max_length is enough to score.
# Nothing is downloaded: a tiny random BERT stands in for a published one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet bert-score==0.3.13 transformers==5.24.0
cd "$work"
venv/bin/python - <<'PY'
from pathlib import Path
from bert_score import BERTScorer
from transformers import BertConfig, BertModel, BertTokenizerFast

Path("vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "boat"]))
BertTokenizerFast(vocab="vocab.txt").save_pretrained("bert")
BertModel(BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                     intermediate_size=16)).save_pretrained("bert")
scorer = BERTScorer(model_type="bert", num_layers=2, device="cpu")
print("model_max_length:", scorer._tokenizer.model_max_length)
try:
    scorer.score(["a boat"], ["a red boat"])
    raised = "nothing"
except OverflowError as error:
    raised = "OverflowError: " + str(error)
print("score() raises", raised)
scorer._tokenizer.model_max_length = 512
_, recall, _ = scorer.score(["a boat"], ["a red boat"])
print("with a length, recall is finite:", bool(recall.isfinite().all()))
if raised == "nothing":
    raise SystemExit("behaviour changed")
PY
