"""`drawbench:FILE`: DrawBench, 200 prompts in 11 categories, from the CSV file that its authors published."""

from dataclasses import replace

from dalle_ppo.captions.local_files import open_files
from dalle_ppo.captions.source import CaptionRequest, CaptionSource

CAPTIONS, TAGS = "Prompts", "Category"


def load(path: str, request: CaptionRequest) -> CaptionSource:
    """The prompts of DrawBench; their categories are the tags.

    Args:
        path: the CSV file, with columns Prompts and Category; copies add more, such as scores.
        request: what is asked of the source; columns that it names replace these.

    Raises:
        ValueError: there is no such file, it cannot be read, or it lacks the columns.

    Source: https://arxiv.org/abs/2205.11487 (Imagen), where DrawBench was published.
    """
    given = request.reading
    reading = replace(
        given,
        column=given.column or CAPTIONS,
        tag_column=TAGS if given.tag_column is None else given.tag_column,
        # Some prompts hold commas and line breaks inside quotes.
        quoting="standard" if given.quoting == "auto" else given.quoting,
    )
    shards, left_out = open_files(path, reading)
    return request.draw_from(shards, left_out=left_out)
