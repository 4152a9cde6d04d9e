"""The prompt sets of papers, by name."""

import pytest

from dalle_ppo.captions.sources import prompts


def test_prompt_sets():
    assert len(set(prompts.simple_animals())) == 45 and "an ant" in prompts.simple_animals()
    assert len(set(prompts.animal_activities())) == 135
    assert "a cat playing chess" in prompts.animal_activities()
    counting = prompts.counting()
    assert len(set(counting)) == 270 and {"one wolf", "three wolves", "six fish"} <= set(counting)
    with pytest.raises(ValueError, match="simple_animals"):
        prompts.prompt_set("cars")
