"""`partiprompts:FILE`: PartiPrompts, 1 632 prompts in 12 categories, from the published PartiPrompts.tsv."""

from dataclasses import replace

from dalle_ppo.captions.local_files import open_files
from dalle_ppo.captions.source import CaptionRequest, CaptionSource

CAPTIONS, TAGS = "Prompt", "Category"


def load(path: str, request: CaptionRequest) -> CaptionSource:
    """The prompts of PartiPrompts; their categories are the tags.

    Args:
        path: the TSV file, with columns Prompt, Category, Challenge and Note.
        request: what is asked of the source; columns that it names replace these, such as Challenge as the
            column of tags.

    Raises:
        ValueError: there is no such file, it cannot be read, or it lacks the columns.

    Source: https://github.com/google-research/parti
    """
    given = request.reading
    reading = replace(
        given,
        column=given.column or CAPTIONS,
        tag_column=TAGS if given.tag_column is None else given.tag_column,
        # Its quotes are part of the prompts, as in: The words "Fly an airplane" are written on the wall.
        quoting="none" if given.quoting == "auto" and path.lower().endswith(".tsv") else given.quoting,
    )
    shards, left_out = open_files(path, reading)
    return request.draw_from(shards, left_out=left_out)
