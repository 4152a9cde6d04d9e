"""What `--help` of commands with options of their own says: the description as written, and every default."""

import argparse


class OptionsHelp(argparse.RawDescriptionHelpFormatter):
    """Ends the text of each option with its default, taken from the parser so that the two cannot differ.

    Switches, and options whose text tells the default already, stay as they are.
    """

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        untold = default is None or default is False or default in ("", [], argparse.SUPPRESS)
        if untold or action.required or "default:" in text:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{text}; default: {shown.replace('%', '%%')}"
