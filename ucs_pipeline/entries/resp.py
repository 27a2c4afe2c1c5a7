"""The Redis protocol (RESP2), as bytes. Pure."""


def bulk(value: bytes) -> bytes:
    """A bulk string of the Redis protocol."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def command(*arguments: bytes) -> bytes:
    """A command of the Redis protocol."""
    return b"*%d\r\n%b" % (len(arguments), b"".join(map(bulk, arguments)))
