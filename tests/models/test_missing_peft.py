"""What a user without peft is told."""

import sys

import pytest
from tiny_trainer import TINY_CONFIG, changed, tiny_trainer


@pytest.mark.parametrize("section", ["actor", "critic"])
def test_a_missing_package_costs_one_line_that_names_the_extra(section, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError) as error:
        tiny_trainer(changed(TINY_CONFIG, {f"{section}.adapter": "lora"}))
    assert "pip install -e '.[lora]'" in str(error.value) and "\n" not in str(error.value)
    tiny_trainer(TINY_CONFIG)  # nobody else needs it
