"""Settings that reward terms share which ask a service: a reward server, or a model that describes images."""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from dalle_ppo.base.checks import at_least_one, not_negative, positive
from dalle_ppo.config.term import TermSettings


def check_url(url: str, name: str) -> None:
    """Refuses what is no address, and addresses with a password, which would be saved with the settings.

    Raises:
        ValueError: it is one of these; names the term.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url of {name} is {url!r}; write it as http://HOST:PORT/PATH")
    if parts.username or parts.password:
        raise ValueError(
            f"url of {name} holds a user or password, and settings are saved; put the key into the "
            "environment and name the variable in api_key_env"
        )


def check_requests(settings: Any) -> None:
    """Refuses numbers of requests and seconds that cannot be."""
    positive(settings, "", "timeout")
    not_negative(settings, "", "retries")
    at_least_one(settings, "", "parallel")


@dataclass(frozen=True)
class VisionSettings(TermSettings):
    """How a term reaches the model that looks at images."""

    model: str
    """The model that looks at the images: its name at `url`; or, without a url, a folder or a name on the hub
    for transformers' pipeline "image-text-to-text"."""
    url: str | None = None
    """Address of an OpenAI-compatible endpoint, such as http://localhost:8000/v1; null runs the
    model here."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the endpoint's key. The key itself is never written anywhere; an
    endpoint of your own needs none."""
    timeout: float = 60.0
    """Seconds to wait for an answer before asking again."""
    retries: int = 4
    """How often a request is repeated, with growing pauses, when the endpoint is down, slow or busy."""
    parallel: int = 8
    """Requests at a time; images at a time if the model runs here."""
    request: dict[str, Any] = field(default_factory=lambda: {"max_tokens": 100, "temperature": 0})
    """Further fields of each request. Some models want {max_completion_tokens: 100} instead. A model that
    runs here takes max_tokens alone, and is not sampled from."""

    def __post_init__(self) -> None:
        check_requests(self)
        if self.url is not None:
            check_url(self.url, "the term")
