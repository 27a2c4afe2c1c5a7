"""Connections to Redis, made by redis-py, and what Redis' own errors mean for a publisher."""

import os

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ucs_pipeline.errors import StreamError, StreamUnavailableError

URL_VARIABLE = "UCS_REDIS_URL"

_TIMEOUT_SECONDS = 30
_PASSING = {
    "OOM": "Redis is out of memory (maxmemory): let consumers catch up and trim, or raise maxmemory",
    "LOADING": "Redis is loading its data from disk",
    "BUSY": "Redis is busy with a script",
    "READONLY": "this Redis is a read-only replica: point " + URL_VARIABLE + " at the primary",
    "MASTERDOWN": "this Redis is a replica that lost its primary",
    "TRYAGAIN": "the Redis cluster is moving the stream's slot",
    "CLUSTERDOWN": "the Redis cluster is down",
    "MISCONF": "Redis cannot save to disk and refuses writes: see its log",
    "NOREPLICAS": "Redis has fewer replicas than its min-replicas-to-write",
}
_DISCARDED = "EXECABORT Transaction discarded because of: "
_SCRIPT_USER = "The user executing the script"
_LASTING = {
    "WRONGTYPE": "the key holds another type, expected a stream: choose another stream name, or delete the key",
    "NOPERM": "the Redis user may not do this: grant it the commands and keys listed in the documentation",
    "NOAUTH": "Redis wants a password: give it in " + URL_VARIABLE,
    "WRONGPASS": "user or password is wrong: check " + URL_VARIABLE,
}


def redis_url() -> str:
    """`UCS_REDIS_URL`, or else the URL of the project's embedded server, which is started if need be."""
    url = os.environ.get(URL_VARIABLE)
    if url:
        return url
    from ucs_pipeline.embedded_redis import embedded_redis_url

    return embedded_redis_url()


def connect_redis() -> "redis.Redis":
    """A client for `UCS_REDIS_URL`, or else for the project's embedded server. Connects at the first command.

    redis-py's own retries are off: it would send a write again without knowing whether the first one arrived.
    """
    url = redis_url()
    try:
        client = redis.Redis.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
        )
        # Connects to nothing; options that redis-py does not know show here.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (ValueError, TypeError):
        # What went wrong is left out: it may quote a part of the password.
        raise StreamError(
            f"{URL_VARIABLE} is not a Redis URL; expected redis://user:password@host:6379/0, rediss://... or "
            "unix:///path?db=0, with other characters than letters and digits percent-encoded in user and password, "
            "and only options of redis-py after a question mark"
        ) from None
    return client


def classify(message: str) -> StreamError:
    """The error a Redis error reply stands for: one that may pass, or one that will not."""
    # An EXEC that is refused itself, after its commands were accepted, says why behind a preface.
    reason = message.removeprefix(_DISCARDED)
    # A missing right is worded in another way inside a script.
    code = "NOPERM" if _SCRIPT_USER in reason else reason.split(" ", 1)[0]
    if code in _PASSING:
        return StreamUnavailableError(f"{_PASSING[code]} ({message})")
    if code in _LASTING:
        return StreamError(f"{_LASTING[code]} ({message})")
    return StreamError(f"Redis refused: {message}")


def translate(error: Exception) -> StreamError:
    """The error a redis-py or socket exception stands for."""
    # redis-py strips the code of some replies into the class of the exception.
    if isinstance(error, redis.AuthenticationError):
        return StreamError(f"Redis refused the login: user or password is wrong or missing; check {URL_VARIABLE}")
    for kind, code in (
        (redis.BusyLoadingError, "LOADING"),
        (redis.ReadOnlyError, "READONLY"),
        (redis.OutOfMemoryError, "OOM"),
    ):
        if isinstance(error, kind):
            return StreamUnavailableError(f"{_PASSING[code]} ({error})")
    if isinstance(error, redis.exceptions.NoPermissionError):
        return StreamError(f"{_LASTING['NOPERM']} ({error})")
    if isinstance(error, redis.ResponseError):
        return classify(str(error))
    return StreamUnavailableError(f"Redis cannot be reached ({error}); check {URL_VARIABLE} and the server")
