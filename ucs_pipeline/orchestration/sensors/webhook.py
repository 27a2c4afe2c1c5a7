"""Posts a JSON text to the address in UCS_ALERT_WEBHOOK_URL. The address is a secret: no message here has it."""

import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from ucs_pipeline.errors import UcsError

URL_VARIABLE = "UCS_ALERT_WEBHOOK_URL"

_TIMEOUT_SECONDS = 5
_TRIES = 2


class WebhookError(UcsError):
    """A message could not be posted. Posting it again later is safe."""

    code = "UCS-WEBHOOK"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as an error: a redirected POST becomes a GET without its message."""

    def redirect_request(self, *_: Any) -> None:
        """Follows no redirect."""


def webhook_url() -> str | None:
    """Where alerts go; None if nowhere."""
    return os.environ.get(URL_VARIABLE) or None


def post(url: str, message: Mapping[str, Any]) -> None:
    """Posts a message as JSON, and once more if that fails.

    Raises:
        WebhookError: it was refused, or the address is invalid.
    """
    problem = ""
    for _ in range(_TRIES):
        problem = _in_time(url, json.dumps(message).encode())
        if not problem:
            return
    raise WebhookError(
        f"The webhook in {URL_VARIABLE} did not accept an alert: {problem}, expected a status of 200 to 299. Fix the "
        "address or the service; a later tick sends the alert."
    )


def _in_time(url: str, body: bytes) -> str:
    """As `_problem`, which limits only the time of each read, with a limit for the whole answer."""
    found: SimpleQueue[str] = SimpleQueue()
    Thread(target=lambda: found.put(_problem(url, body)), name="ucs-webhook", daemon=True).start()
    try:
        return found.get(timeout=_TIMEOUT_SECONDS)
    except Empty:
        return f"it has not answered within {_TIMEOUT_SECONDS} s"


def _problem(url: str, body: bytes) -> str:
    """Why a message was refused, without any part of the address; nothing if it was accepted.

    Errors of urllib often quote the address, or a part of it, so none of them leaves this function.
    """
    try:
        if urlsplit(url).scheme not in ("http", "https"):
            return "it is not an http:// or https:// address"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - checked above
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=_TIMEOUT_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return f"it answered with status {error.code}"
    except OSError as error:
        return f"it cannot be reached ({_kind(error)})"
    except Exception as error:  # ValueError and http.client.HTTPException, in many kinds: InvalidURL, BadStatusLine...
        return f"the address or its answer cannot be read ({type(error).__name__})"


def _kind(error: OSError) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    # Error texts of the operating system are fixed; others name hosts. TLS has its own numbers.
    number = reason.errno if isinstance(reason, OSError) and not isinstance(reason, ssl.SSLError) else None
    return os.strerror(number) if number is not None and number > 0 else type(reason).__name__
