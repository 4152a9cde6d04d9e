"""Settings of the reward term `remote`."""

from dataclasses import dataclass

from dalle_ppo.base.checks import at_least_one
from dalle_ppo.config.service import check_requests, check_url
from dalle_ppo.config.term import TermSettings


@dataclass(frozen=True)
class Settings(TermSettings):
    """Scores from an HTTP server: images go there as PNG in JSON, and one number per image comes back."""

    url: str
    """Address that images are posted to, such as http://localhost:8080/score."""
    images_per_request: int = 16
    """Images in one request."""
    parallel: int = 4
    """Requests at a time."""
    timeout: float = 60.0
    """Seconds to wait for an answer before asking again."""
    retries: int = 4
    """How often a request is repeated, with growing pauses, when the server is down, slow or busy. 4 bridge 7
    seconds, 7 bridge a minute, and each further one adds a minute."""
    api_key_env: str | None = None
    """The environment variable with a key for the header Authorization: Bearer KEY; null sends none. The key
    is never written anywhere."""

    def __post_init__(self) -> None:
        at_least_one(self, "", "images_per_request")
        check_requests(self)
        check_url(self.url, "remote")
