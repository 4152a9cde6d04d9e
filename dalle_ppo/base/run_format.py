"""The format of a run's folder: one number, in its config.yaml and in every checkpoint."""

FORMAT = 2
"""The format that this version writes and reads. Raise it when names or files that a reader needs change."""
READ_BY = {1: "dalle_ppo 0.1"}
"""The version that reads each older format."""


class FormatError(ValueError):
    """The run has a format that this version does not read."""


def check_format(found: object, path: object) -> None:
    """Refuses a file with another format.

    Args:
        found: the number in the file.
        path: the file, for the message.

    Raises:
        FormatError: the formats differ; the message names the version that reads the file.
    """
    if found != FORMAT:
        reader = READ_BY.get(found, "a newer dalle_ppo") if isinstance(found, int) else "the file as it was"
        raise FormatError(
            f"{path} has format {found}, but this version reads format {FORMAT}: "
            f"use {reader}, or start a new run"
        )
