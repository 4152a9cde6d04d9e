"""Settings of the report."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ReportConfig:
    """What report.html shows."""

    hide_captions: bool = False
    """Show no caption that is tagged NSFW; its pictures stay, blurred as the detector says. Samples and
    TensorBoard never hold captions. The files of the evaluation still do."""
