"""Refuses settings that name code of the user's own, for files whose author one does not trust."""

from dalle_ppo.config.settings import Config

NO_USER_CODE = "refuse settings that name a function of your own (module:function); for files from strangers"


def refuse_user_code(config: Config, where: str) -> None:
    """Refuses settings that name a function, before its module is imported.

    Args:
        config: the settings.
        where: the file or command that they come from, for the message.

    Raises:
        ValueError: a reward term or a judge is a function; names it.
    """
    named = {"reward.terms": config.reward.parsed, "evaluation.judges": config.evaluation.parsed_judges}
    for setting, terms in named.items():
        for term in terms:
            if term.is_function:
                raise ValueError(
                    f"{where}: {setting} names the function {term.name}, which --no_user_code refuses; leave "
                    "that entry out, or the flag if you trust whoever wrote it"
                )
