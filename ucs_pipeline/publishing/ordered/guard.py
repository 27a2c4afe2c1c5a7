"""What surrounds the rows of a transaction, as bytes of the Redis protocol. Pure.

Why a transaction. Redis may refuse one command of a pipeline and accept the next (out of memory for a moment, a failing
disk, a replica being promoted): sent bare, row 7 could be refused and row 8 accepted, and row 7 could never be added
again. In MULTI, one refused row makes EXEC refuse them all.

Why a guard. Redis accepts any id above a stream's top, so nothing in XADD itself stops rows from being appended where
rows before them are missing: the transaction before was refused, or somebody deleted the stream and a worker's XGROUP
CREATE ... MKSTREAM made it again. So every transaction begins with a script that looks whether the top is the row
before its first one. Nothing can end a transaction from inside; but XADD adds nothing to a key that holds text. So a
guard that finds another top moves the stream aside and puts a text in its place, and the transaction's last command
moves the stream back over it. Nobody sees that: EXEC runs as one step.

Why a fencing token. A publisher that was frozen may wake up after the stream was deleted and begun again by another
one, and find the very top it expects. Every publisher writes its own token under the writer key when it starts, and the
guard looks at that too: a publisher that has been replaced cannot add anything more.

Why the scripts are sent whole each time. EVALSHA of a script that Redis has forgotten would fail inside the
transaction, and the rows behind it would be added without having been looked at.
"""

from ucs_pipeline.entries.entry_id import EntryId
from ucs_pipeline.entries.resp import command
from ucs_pipeline.feed.redis_keys import fencing_token_key, parked_key

FENCED, LOST, GONE = b"fenced", b"lost", b"gone"
"""What a guard finds in the place of a top: another publisher's token, no token, no stream."""

MULTI, EXEC = command(b"MULTI"), command(b"EXEC")

# Keys of both: the stream, its fencing token, the name it is moved aside to. Arguments: the token, the top.
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
# A stream that is not there is made, to be moved over the text: an empty one says as much.
# Nothing may lie where it is moved aside to: the last command would move that over the stream.
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
# What a replica answers is another server's, and may be older. A group that is not there tells: to destroy it changes
# nothing, and a replica refuses even that.
_ANSWER = b"""
if found == ARGV[2] then return {redis.call('XLEN', KEYS[1]), added, found} end
local told = redis.pcall('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
if type(told) == 'table' and string.find(told.err, 'READONLY') then
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
        """What comes after the rows. Where the guard was open, there is nothing to move back, an error that is none."""

    def begin(self, top: EntryId) -> bytes:
        """What comes before the rows that follow on a top."""
        return MULTI + self._script(_LOOK + _CLOSE, top)

    def probe(self, top: EntryId) -> bytes:
        """What asks whether rows up to a top are there.

        The answer is the stream's length, the entries it ever had (-1 before Redis 7) and the top, or what else was
        found: another top, `FENCED`, `LOST` or `GONE`; an error where the server has become a replica.
        """
        return self._script(_LOOK + _ANSWER, top)

    def _script(self, text: bytes, top: EntryId) -> bytes:
        keys = (self.stream, self.fence, self.parked)
        return command(b"EVAL", text, b"3", *keys, self._token, str(top).encode())
