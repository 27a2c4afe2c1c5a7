"""What surrounds the rows of an any-order feed's transaction, as bytes of the Redis protocol. Pure.

Why a transaction and a guard, and how a guard is closed: see `ordered.guard`. What is different here: Redis assigns the
ids, so the ledger, not the stream's last ID, records which rows are in the stream. The guard accepts rows only if the
ledger has exactly the state of their brick that the publisher expects (rows, content, replay). That stops frozen,
replaced and repeated transactions, so there is no fencing token. The transaction ends with a second script that writes
the added rows into the ledger. So every row in the stream is in the ledger, and the reverse.

Redis refuses a whole transaction, or nothing of it, when it is out of memory, short of replicas or cannot save. The
second script does not rely on that: it counts, and if fewer rows came than were sent, it deletes them again.

How the guard recognizes the ledger's stream: see `ledger_mark`. Each transaction moves the mark.
"""

import secrets

from ucs_pipeline.entries.resp import command
from ucs_pipeline.errors import StreamError
from ucs_pipeline.feed.redis_keys import ledger_key, mark_name, parked_key
from ucs_pipeline.publishing.ordered.guard import MULTI

OPEN, MOVED, GONE, FULL, REFUSED = 1, b"moved", b"gone", b"full", b"refused"
"""Answers of the scripts of a transaction: see `LedgerGuard`."""

DOUBT = b"doubt"
"""The answer of `LedgerGuard.begin` if stream and ledger may not belong together."""

_BEYOND = b"18446744073709551615-"
"""Above every entry: a group there has no lag, and prevents no trimming."""

_EXEC = command(b"EXEC")

# Keys of all scripts: the stream, the ledger, the name that the stream is moved to. Last argument of all: the mark's
# name.
_READ = b"""
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
local length, top, added = 0, '', -1
for i = 1, #info, 2 do
  if info[i] == 'length' then length = info[i + 1] end
  if info[i] == 'last-generated-id' then top = info[i + 1] end
  if info[i] == 'entries-added' then added = info[i + 1] end
end
local counted = added >= 0
if top ~= '' and not counted then added = top == '0-0' and 0 or 1 end
"""
_FIND = b"""
local mark = false
for _, group in ipairs(info.err and {} or redis.call('XINFO', 'GROUPS', KEYS[1])) do
  for i = 1, group[2] == ARGV[#ARGV] and #group or 0, 2 do
    if group[i] == 'last-delivered-id' then mark = group[i + 1] end
  end
end
local absent = info.err and string.find(info.err, 'no such key')
"""
# Arguments: the numbering, a new mark. `ledger_mark` explains the decisions.
_BEGIN = (
    _READ
    + _FIND
    + b"""
if info.err and not absent then return info end
local known = redis.call('HMGET', KEYS[2], 'mark', 'added', 'rows', 'top')
local noted, before, rows, reached = known[1], tonumber(known[2] or -1), tonumber(known[3] or 0), known[4]
local lost, gone = 0, not mark and before > added
if noted and not mark then
  gone = absent or top == '0-0' or rows == 0
    or counted and length > added - before and #redis.call('XRANGE', KEYS[1], '-', reached, 'COUNT', 1) == 0
end
if gone then
  lost, noted = redis.call('HLEN', KEYS[2]), false
  redis.call('DEL', KEYS[2])
end
if noted ~= mark then return 'doubt' end
if not mark then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[3], ARGV[2], 'MKSTREAM')
  redis.call('HSET', KEYS[2], 'mark', ARGV[2], 'top', top == '' and '0-0' or top)
end
redis.call('HSETNX', KEYS[2], 'numbering', ARGV[1])
return {redis.call('HGET', KEYS[2], 'numbering'), lost}
"""
)
# Arguments: the brick, the expected head, the number of rows, the cap on the stream's entries.
_ENTER = (
    _READ
    + _FIND
    + b"""
local now, noted = redis.pcall('HGET', KEYS[2], ARGV[1]), redis.pcall('HGET', KEYS[2], 'mark')
local found
if not mark or noted ~= mark then
  found = 'gone'
elseif (ARGV[2] == '' and now) or string.sub(now or '', 1, #ARGV[2]) ~= ARGV[2] then
  found = 'moved'
elseif length + tonumber(ARGV[3]) > tonumber(ARGV[4]) then
  found = 'full'
elseif redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('HSET', KEYS[2], 'under way', length .. ' ' .. top)
  return 1
end
if absent then
  -- Creating and destroying a group is the only way to create a stream without an entry.
  redis.call('XGROUP', 'CREATE', KEYS[3], 'ucs', '0', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', KEYS[3], 'ucs')
else
  redis.call('RENAME', KEYS[1], KEYS[3])
end
redis.call('SET', KEYS[1], '')
return found or 'moved'
"""
)
# Arguments: the brick (empty: only to test the rights), its new head, the number of rows, whether they are its first
# ones, a new mark.
_LEAVE = (
    b"""
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('RENAME', KEYS[3], KEYS[1])
  return 'closed'
end
local before, last = string.match(redis.call('HGET', KEYS[2], 'under way'), '(%d+) (.+)')
redis.call('HDEL', KEYS[2], 'under way')
"""
    + _READ
    + b"""
local more = length - tonumber(before)
if more ~= tonumber(ARGV[3]) then
  if more > 0 then
    for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', more)) do
      redis.call('XDEL', KEYS[1], entry[1])
    end
  end
  return 'refused'
end
redis.call('XGROUP', 'SETID', KEYS[1], ARGV[6], ARGV[5])
redis.call('HSET', KEYS[2], 'added', added, 'top', top, 'mark', ARGV[5])
redis.call('HINCRBY', KEYS[2], 'rows', more)
if ARGV[1] == '' then
  redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
  redis.call('XDEL', KEYS[1], '0-0')
  return 1
end
local first, final
if ARGV[4] == '1' then
  first, final = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)[1][1], top
else
  first, final = string.match(redis.call('HGET', KEYS[2], ARGV[1]), '(%S+) (%S+)$')
  if more > 0 then final = top end
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. first .. ' ' .. final)
return 1
"""
)
# Arguments: the brick, the number of the probe.
_ASK = b"return {redis.call('XLEN', KEYS[1]), redis.call('HGET', KEYS[2], ARGV[1]) or '', ARGV[2]}"


class LedgerGuard:
    """The guard of a feed's transactions.

    The script before the rows answers `OPEN`, or why none of them will be added: the ledger has another state
    (`MOVED`), the stream is not the ledger's (`GONE`), or is full (`FULL`). The script after them answers `REFUSED` if
    Redis did not take all of them.
    """

    def __init__(self, stream: str, feed: str, most: int) -> None:
        """`most`: entries that the stream may hold."""
        ledger, self.parked = ledger_key(stream, feed), parked_key(stream).encode()
        self._mark = mark_name(feed).encode()
        self._keys = stream.encode(), ledger.encode(), self.parked
        self._most = b"%d" % most

    def prepare(self, partitions: str) -> bytes:
        """Makes sure that stream and ledger exist and belong together.

        The answer is the ledger's numbering, and how many fields it had if its stream was lost and it is new; or
        `DOUBT`.
        """
        return self._script(_BEGIN, partitions.encode(), _new_mark())

    def begin(self, brick: bytes, expected: bytes, rows: int) -> bytes:
        """The request before rows of a brick whose head in the ledger should be `expected`; nothing, if it is empty."""
        return MULTI + self._script(_ENTER, brick, expected, b"%d" % rows, self._most)

    def commit(self, brick: bytes, head: bytes, rows: int, *, begins: bool) -> bytes:
        """The request after the rows, which writes the new head."""
        return self._script(_LEAVE, brick, head, b"%d" % rows, b"1" if begins else b"0", _new_mark()) + _EXEC

    def probe(self, brick: bytes, number: int) -> bytes:
        """Reads the stream's length and a brick's head in the ledger; the reply includes the number."""
        return self._script(_ASK, brick, b"%d" % number)

    def _script(self, text: bytes, *arguments: bytes) -> bytes:
        return command(b"EVAL", text, b"3", *self._keys, *arguments, self._mark)


def _new_mark() -> bytes:
    return _BEYOND + b"%d" % secrets.randbits(64)


def refuse_numbering(feed: str, ledger: str, found: bytes, expected: str) -> None:
    """Makes sure that a ledger has the feed's partitions.

    Raises:
        StreamError: the feed began with other partitions.
    """
    if found.decode(errors="replace") != expected:
        raise StreamError(
            f"feed {feed!r}: ledger {ledger!r} was written with bricks of {found.decode(errors='replace')}, and the "
            f"feed has {expected}. Set `bricks` back, or choose another `stream.name`.",
            "UCS-NUMBERING",
        )
