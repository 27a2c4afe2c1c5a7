"""Connections to Redis, made by redis-py, and what Redis' own errors mean for a publisher."""

import os
from urllib.parse import urlsplit

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
        return redis.Redis.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
        )
    except ValueError as error:
        raise StreamError(
            f"{URL_VARIABLE} is not a Redis URL ({_without_secret(error, url)}); expected redis://, rediss:// or unix://"
        ) from None


def classify(message: str) -> StreamError:
    """The error a Redis error reply stands for: one that may pass, or one that will not."""
    code = message.split(" ", 1)[0]
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


def _without_secret(error: ValueError, url: str) -> str:
    password = urlsplit(url).password
    return str(error).replace(password, "***") if password else str(error)
