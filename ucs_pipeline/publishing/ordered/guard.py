"""What surrounds the rows of a transaction, as bytes of the Redis protocol. Pure.

Why a transaction. Redis may refuse one command of a pipeline and accept the next (out of memory for a moment, a failing
disk, a replica being promoted): without MULTI, row 7 could be refused and row 8 accepted, and row 7 could never be
added again. In MULTI, one refused row makes EXEC refuse them all.

Why a guard. Redis accepts any id above a stream's last ID, so XADD also appends rows after missing ones: if the
previous transaction was refused, or if the stream was deleted and a worker's XGROUP CREATE ... MKSTREAM created it
again. So every transaction begins with a script that tests whether the last ID is the row before its first one. A
transaction cannot be ended from inside; but XADD adds nothing to a key that holds text. So a guard that finds another
last ID renames the stream and writes a text to its key, and the transaction's last command renames the stream back.
Other clients do not notice: EXEC runs as one step.

Why a fencing token. A publisher that was frozen may continue after the stream was deleted and started again by another
one, and find the last ID it expects. Every publisher writes its own token to the writer key when it starts, and the
guard tests the token too: a replaced publisher cannot add anything more.

Why the scripts are sent whole each time. EVALSHA of a script that Redis has forgotten would fail inside the
transaction, and the rows after it would be added without a test.
"""

from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.entries.resp import command
from ucs_pipeline.feed.redis_keys import fencing_token_key, parked_key

FENCED, LOST, GONE = b"fenced", b"lost", b"gone"
"""Answers of a guard instead of a last ID: another publisher's token, no token, no stream."""

MULTI, EXEC = command(b"MULTI"), command(b"EXEC")

# Keys of both: the stream, its fencing token, the name it is renamed to. Arguments: the token, the last ID.
_LOOK = b"""
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
local owner, found, added = redis.call('GET', KEYS[2]), 'fenced', -1
if not owner then found = 'lost' end
if owner == ARGV[1] then
  found = 'gone'
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then found = info[i + 1] end
    if info[i] == 'entries-added' then added = info[i + 1] end
  end
end
"""
# A missing stream is created, to replace the text: an empty stream means the same. The other name must be free: the
# last command would rename its key over the stream.
_CLOSE = b"""
if found == ARGV[2] and redis.call('EXISTS', KEYS[3]) == 0 then return 1 end
if info.err and string.find(info.err, 'no such key') then
  redis.call('XGROUP', 'CREATE', KEYS[3], ARGV[1], '0', 'MKSTREAM')
  redis.call('XGROUP', 'DESTROY', KEYS[3], ARGV[1])
else
  redis.call('RENAME', KEYS[1], KEYS[3])
end
redis.call('SET', KEYS[1], '')
return found
"""
# A replica's answer may be older. Destroying a group that does not exist changes nothing, and a replica refuses it.
_ANSWER = b"""
if found == ARGV[2] then return {redis.call('XLEN', KEYS[1]), added, found} end
local reply = redis.pcall('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
if type(reply) == 'table' and string.find(reply.err, 'READONLY') then
  return redis.error_reply('READONLY the server became a replica')
end
return found
"""


class AppendGuard:
    """The guard of one publisher of one stream."""

    def __init__(self, stream: str, token: bytes) -> None:
        self._token = token
        self.stream, self.fence = stream.encode(), fencing_token_key(stream).encode()
        self.parked = parked_key(stream).encode()
        self.commit = command(b"RENAME", self.parked, self.stream) + EXEC
        """The request after the rows. If the guard was open, there is nothing to rename, and the error is ignored."""

    def begin(self, top: EntryId) -> bytes:
        """The request before the rows that follow a last ID."""
        return MULTI + self._script(_LOOK + _CLOSE, top)

    def probe(self, top: EntryId) -> bytes:
        """The request that tests whether rows up to a last ID are there.

        The answer is the stream's length, the entries it ever had (-1 before Redis 7) and the last ID, or instead
        another last ID, `FENCED`, `LOST` or `GONE`; an error if the server has become a replica.
        """
        return self._script(_LOOK + _ANSWER, top)

    def _script(self, text: bytes, top: EntryId) -> bytes:
        keys = (self.stream, self.fence, self.parked)
        return command(b"EVAL", text, b"3", *keys, self._token, str(top).encode())
