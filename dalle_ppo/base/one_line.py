"""Errors of libraries in the short form that our own messages quote."""

LENGTH = 200
"""Characters: some libraries put the file's own bytes into their message, zipfile all of a damaged name."""


def one_line(error: BaseException) -> str:
    """An error's type and message in one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:LENGTH].removesuffix(":")
