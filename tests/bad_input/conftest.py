"""What the tests of bad input share."""

import pytest

from dalle_ppo.config import command_line


@pytest.fixture(scope="module", autouse=True)
def one_parser():
    """One parser for all cases: making it, like importing open_clip, takes longer than all else here."""
    import open_clip  # noqa: F401

    make, made = command_line._make_parser, {}

    def parser(prog, description, flags):
        key = tuple(flags)
        if key not in made:
            made[key] = make(prog, description, flags)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command_line, "_make_parser", parser)
        yield
