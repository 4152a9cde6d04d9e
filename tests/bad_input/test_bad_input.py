"""A table of bad inputs: each ends with one line that names the key or file, and nothing half-written."""

import time

import pytest
from bad_input import captions, configs, preferences, weights

CASES = [*configs.CASES, *captions.CASES, *weights.CASES, *preferences.CASES]
SECONDS = 5


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_ends_with_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with pytest.raises(ValueError) as caught:
        case.run(tmp_path)
    seconds, message = time.monotonic() - started, str(caught.value)
    assert type(caught.value).__module__.startswith(("builtins", "dalle_ppo"))
    assert type(caught.value).__name__ not in ("JSONDecodeError", "UnicodeDecodeError")
    assert "\n" not in message and len(message) < 1500
    for word in case.words:
        assert word in message
    assert seconds < SECONDS
