"""An OpenAI-compatible endpoint with image input: asks, tries again, and says in one line why it cannot."""

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dalle_ppo.preferences.asking.budget import Budget

KEY_NAME = "OPENAI_API_KEY"
NO_KEY = "none"
"""What a server on one's own machine gets: the client insists on a key."""
LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class EndpointOptions:
    """Which endpoint, and how patiently it is asked.

    Args:
        url: base URL, such as http://localhost:8000/v1.
        model: name of the model.
        timeout: seconds until a request counts as lost.
        retries: how often a request is repeated before the command gives up.
    """

    url: str
    model: str
    timeout: float = 60.0
    retries: int = 5

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--by is {self.url}; it must be a URL such as http://localhost:8000/v1")
        if parts.username or parts.password:
            raise ValueError(f"--by holds a password; give the key in the environment as {KEY_NAME} instead")
        if not self.model.strip():
            raise ValueError("--model is empty; name a model that the endpoint has")
        if not self.timeout > 0:
            raise ValueError(f"--timeout is {self.timeout}; it must be above 0 seconds")
        if self.retries < 0:
            raise ValueError(f"--retries is {self.retries}; it must be 0 or more")


class Endpoint:
    """Asks one model; the key comes from the environment, and goes nowhere but to the endpoint.

    Args:
        options: which one.
        budget: every request is counted, whatever comes of it.
        sleep: waits for some seconds.

    Raises:
        ValueError: the package `openai` is missing.
    """

    def __init__(self, options: EndpointOptions, budget: Budget, sleep: Callable[[float], None] = time.sleep):
        try:
            import openai
        except ImportError:
            raise ValueError("--by needs the package openai; pip install -e '.[label]'") from None
        self._openai, self._options, self._budget, self._sleep = openai, options, budget, sleep
        self._key = os.environ.get(KEY_NAME, "").strip()
        # Tries again here, not in the client: each try counts against the budget.
        self._client = openai.OpenAI(
            base_url=options.url, api_key=self._key or NO_KEY, timeout=options.timeout, max_retries=0
        )

    def ask(self, content: list[dict[str, Any]]) -> str:
        """Sends one message and returns the text of the reply, "" if it has none.

        Raises:
            Spent: the budget allows no request.
            ValueError: the endpoint refuses the request, or fails every time.
        """
        for attempt in range(self._options.retries + 1):
            self._budget.before_request()
            try:
                return self._text_of(self._send(content))
            except self._openai.APIStatusError as error:
                if not _may_pass(error):
                    raise ValueError(self._refusal(error)) from None
                wait, problem = _wait(attempt, error.response.headers.get("retry-after")), self._said(error)
            except self._openai.APIConnectionError as error:  # a time-out is one too
                wait, problem = _wait(attempt, None), str(error)
            if attempt < self._options.retries:
                self._sleep(wait)
        raise ValueError(
            f"--by {self._options.url} failed {self._options.retries + 1} times in a row ({problem}); what "
            "was answered is kept: start the same command again later to go on"
        )

    def hide_key(self, text: str) -> str:
        """The text without the key: an endpoint may repeat what it was sent."""
        return text.replace(self._key, "[key]") if self._key else text

    def _send(self, content: list[dict[str, Any]]) -> Any:
        messages = [{"role": "user", "content": content}]
        try:
            return self._client.chat.completions.create(model=self._options.model, messages=messages)
        except ValueError as error:  # a body that is no JSON
            return str(error)

    def _text_of(self, response: Any) -> str:
        """Also of replies that are no chat completion at all, such as the page of a web server."""
        usage = getattr(response, "usage", None)
        self._budget.after_reply(
            getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
        )
        if isinstance(response, str):
            return self.hide_key(response)
        choices = getattr(response, "choices", None) or []
        message = getattr(choices[0], "message", None) if choices else None
        text = getattr(message, "content", None) or getattr(message, "refusal", None) or ""
        return self.hide_key(text if isinstance(text, str) else str(text))

    def _said(self, error: Any) -> str:
        return self.hide_key(" ".join(f"{error.status_code}: {error.message}".split()))[:300]

    def _refusal(self, error: Any) -> str:
        said, name = self._said(error), self._options.model
        if error.status_code in (401, 403):
            return f"{self._options.url} does not accept the key ({said}); set {KEY_NAME} in the environment"
        if error.status_code == 404:
            return (
                f"{self._options.url} has no model {name}, or is no base URL ({said}); check --by and --model"
            )
        if _about_images(error):
            return f"--model {name} reads no pictures ({said}); choose a model with image input"
        return f"{self._options.url} refuses the request ({said}); what was answered is kept"


def _may_pass(error: Any) -> bool:
    """Whether the same request may succeed later."""
    if error.code == "insufficient_quota" or _about_images(error):
        return False
    return error.status_code in (408, 409, 425, 429) or error.status_code >= 500


def _about_images(error: Any) -> bool:
    """Whether a server says that it takes no pictures; some do so with status 500."""
    words = str(error.message).lower()
    return (
        error.status_code in (400, 415, 422, 500)
        and "support" in words
        and ("image" in words or "vision" in words or "multimodal" in words)
    )


def _wait(attempt: int, retry_after: str | None) -> float:
    """Seconds until the next try: what the endpoint asks for, or twice as long each time."""
    try:
        wanted = float(retry_after or "")
    except ValueError:
        wanted = 2.0**attempt * random.uniform(0.8, 1.2)
    return min(max(wanted, 0.0), LONGEST_WAIT)
