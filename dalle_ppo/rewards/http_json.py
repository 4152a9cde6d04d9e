"""Posts JSON and reads JSON, again and again while a server is down, slow or busy."""

import http.client
import json
import time
import urllib.error
import urllib.request
from typing import Any

from dalle_ppo.rewards.asking import shown
from dalle_ppo.rewards.base import RewardFailure

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
LONGEST_ERROR = 10_000
"""Bytes that are read of an answer that is an error."""
BUSY = (408, 425, 429, 500, 502, 503, 504)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would follow a redirected POST with a GET, and take the key along."""

    def redirect_request(self, *_):
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def post(url: str, content: Any, timeout: float, retries: int, key: str | None = None) -> Any:
    """The server's answer.

    A request is repeated after 0.5, 1, 2 ... seconds, or what the server's Retry-After says, if nobody
    answers within the time or the answer is 408, 425, 429, 500, 502, 503 or 504.

    Args:
        url: where to post.
        content: JSON-able.
        timeout: seconds to wait for each part of an answer.
        retries: how often to repeat the request.
        key: sent as Authorization: Bearer KEY if given.

    Raises:
        RewardFailure: there is no usable answer.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(content).encode(), headers)
    pause = FIRST_PAUSE
    for attempt in range(retries + 1):
        try:
            with _OPENER.open(request, timeout=timeout) as answer:
                body = answer.read()
            break
        except urllib.error.HTTPError as error:
            said, asked = f"{error.code} {shown(_text_of(error), key)}", error.headers
            if error.code not in BUSY:
                raise RewardFailure(f"{url} answered {said.rstrip()}") from None
        except (OSError, http.client.HTTPException) as error:
            said, asked = _why(error, timeout), {}
        if attempt == retries:
            raise RewardFailure(f"{url}, asked {retries + 1} times: {said.rstrip()}") from None
        time.sleep(_pause(asked.get("Retry-After"), pause))
        pause = min(2 * pause, LONGEST_PAUSE)
    try:
        return json.loads(body)
    except ValueError:
        text = shown(body.decode(errors="replace"), key)
        raise RewardFailure(f"{url} answered with {text!r}, which is no JSON") from None


def _text_of(error: urllib.error.HTTPError) -> str:
    """What an answer that is an error says; "" if its text does not come, as the code says enough."""
    try:
        with error:
            return error.read(LONGEST_ERROR).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""


def _pause(asked: str | None, otherwise: float) -> float:
    """Seconds to wait: what the server asks for, if it is a number, within bounds."""
    if asked is not None and asked.isdecimal():
        return min(float(asked), LONGEST_PAUSE)
    return otherwise


def _why(error: Exception, timeout: float) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"no answer within {timeout:g} s; raise the term's timeout, or ask for fewer images at a time"
    return f"{shown(reason) or type(reason).__name__}; is the server running?"
