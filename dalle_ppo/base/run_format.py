"""The format of a run's folder: one number, in its config.yaml and in every checkpoint."""

FORMAT = 2
"""What this version writes and reads. A change of names or files that a reader needs raises it."""
READ_BY = {1: "dalle_ppo 0.1"}
"""Which version reads an older format."""


class FormatError(ValueError):
    """A run of a format that this version does not read."""


def check_format(found: object, path: object) -> None:
    """Refuses a file of another format.

    Args:
        found: the number in the file.
        path: the file, for the message.

    Raises:
        FormatError: naming the version that reads it.
    """
    if found != FORMAT:
        reader = READ_BY.get(found, "a newer dalle_ppo")
        raise FormatError(
            f"{path} has format {found}, and this version reads format {FORMAT}: "
            f"use {reader}, or start a new run"
        )
