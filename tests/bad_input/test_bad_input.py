"""A table of bad inputs: each ends with one line that names the key or file, and nothing half-written."""

import time

import pytest
from bad_input import captions, configs, weights

from dalle_ppo.config import command_line

CASES = [*configs.CASES, *captions.CASES, *weights.CASES]
SECONDS = 5


@pytest.fixture(scope="module", autouse=True)
def one_parser():
    """The same parser for all cases: making one takes longer than everything else here."""
    parser = command_line._make_parser("test", "", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, "_make_parser", lambda *_: parser)
        yield


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
