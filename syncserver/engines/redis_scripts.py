"""What Redis does in one step, in Lua.

For each stream there are three keys, for each idempotency key one. All have one hash tag, so
that what a script names for itself is in the slot of its ``KEYS``:

``m:STREAM``
    hash: epoch ``e``, offset ``o``, mark ``k`` of the head; time ``t`` and sum ``b`` of the sizes
    up to it; offset ``f`` of the last entry that was trimmed; ``u`` and ``v``, time and sum at the
    last step.
``l:STREAM``
    stream: id ``OFFSET-0``; ``h`` is epoch, mark and previous mark, ``d`` the data.
``s:STREAM``
    list of *steps*, "time offset sum" for an entry now and then: all up to it are no younger,
    and all after it have the rest of the sum. They say how far to trim without reading entries.
``i:STREAM:KEY``, ``a:CALL``
    text: what an append with this key, or this very call, was answered.
``n:settings``
    sorted set: digests of the settings of nodes, by the time at which they were left.

Those of grants are in ``redis_grants``.

A script that fails has written nothing: it reads first, and Redis refuses its first write or
none. (A DEL of nothing is a write too: Redis would not look at its memory again.) Any may be called
twice, as happens when an answer is lost: the second call does nothing and gives the same answer.

Numbers leave Lua by ``%.0f`` only, as it writes large ones in another way.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple


class Script(NamedTuple):
    """A Lua script and the name that Redis knows it by."""

    source: bytes
    sha: str

    @classmethod
    def of(cls, *parts: str) -> Script:
        """Return the script that the parts make together."""
        source = "\n".join(parts).encode()
        return cls(source, hashlib.sha1(source).hexdigest())  # noqa: S324  # Redis's choice


# ARGV: prefix, epoch to begin with, entries, bytes and ms to retain, ...
LOG = """
local prefix, fresh = ARGV[1], ARGV[2]
local max_entries, max_bytes, max_ms = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function text(number)
  return string.format('%.0f', number)
end

local function place(log)
  return log.epoch .. '.' .. text(log.offset) .. '.' .. log.mark
end

local function save(log)
  redis.call('HSET', log.meta, 'e', log.epoch, 'o', text(log.offset), 'k', log.mark,
    't', text(log.time), 'b', text(log.bytes), 'f', text(log.trimmed),
    'u', text(log.step_time), 'v', text(log.step_bytes))
end

-- Begin a log anew: who followed the old one will see another epoch.
local function begin(log)
  if redis.call('EXISTS', log.meta, log.entries, log.steps) > 0 then
    redis.call('DEL', log.meta, log.entries, log.steps)
  end
  log.epoch, log.offset, log.mark, log.begun = fresh, 0, '0', true
  log.time, log.bytes, log.trimmed, log.step_time, log.step_bytes = now, 0, 0, now, 0
end

local function open(stream)
  local log = {meta = prefix .. 'm:' .. stream, entries = prefix .. 'l:' .. stream,
    steps = prefix .. 's:' .. stream}
  local meta = redis.call('HMGET', log.meta, 'e', 'o', 'k', 't', 'b', 'f', 'u', 'v')
  redis.call('LLEN', log.steps) -- fails before anything was written if it is no list
  log.epoch, log.offset, log.mark = meta[1], tonumber(meta[2] or 0), meta[3]
  if not log.epoch or (log.offset > 0 and redis.call('EXISTS', log.entries) == 0) then
    begin(log) -- one of the keys was evicted or deleted
  else
    log.time, log.bytes, log.trimmed = tonumber(meta[4]), tonumber(meta[5]), tonumber(meta[6])
    log.step_time, log.step_bytes = tonumber(meta[7]), tonumber(meta[8])
  end
  return log
end

local function add(call, log, mark, data)
  return call('XADD', log.entries, text(log.offset + 1) .. '-0',
    'h', log.epoch .. ' ' .. mark .. ' ' .. log.mark, 'd', data)
end

local function append(log, mark, data)
  local added = add(redis.pcall, log, mark, data)
  if type(added) == 'table' and added.err then
    if string.find(added.err, 'equal or smaller') then
      begin(log) -- there are entries of which the hash knows nothing
    end
    add(redis.call, log, mark, data)
  end
  if now - log.step_time >= max_ms / 8 or log.bytes - log.step_bytes >= max_bytes / 8 then
    redis.call('RPUSH', log.steps,
      text(log.time) .. ' ' .. text(log.offset) .. ' ' .. text(log.bytes))
    log.step_time, log.step_bytes = now, log.bytes
  end
  log.offset, log.mark, log.time = log.offset + 1, mark, now
  log.bytes = log.bytes + #data + 300
end

local function trim(log)
  local last = log.offset - max_entries
  while true do
    local step = redis.call('LINDEX', log.steps, 0)
    if not step then break end
    local time, offset, bytes = string.match(step, '^(%d+) (%d+) (%d+)$')
    if now - time <= max_ms and log.bytes - bytes < max_bytes then break end
    redis.call('LPOP', log.steps)
    last = math.max(last, tonumber(offset))
  end
  if last > log.trimmed then
    redis.call('XTRIM', log.entries, 'MINID', '=', text(last + 1))
    log.trimmed = last
  end
end

local function notify(stream, mark, notice)
  local log = open(stream)
  append(log, mark, notice)
  trim(log)
  save(log)
end
"""

# KEYS: call, keys of entries. ARGV: ..., stream, ms of keys, ms of calls; mark, digest, data ...
APPEND = Script.of(
    LOG,
    """
local answer = redis.call('GET', KEYS[1])
if answer then return answer end
local log, places, key = open(ARGV[6]), {}, 1
for index = 9, #ARGV, 3 do
  local digest, known = ARGV[index + 1], false
  if digest ~= '' then
    key = key + 1
    known = redis.call('MGET', KEYS[key])[1] -- unlike GET it passes over what is no text
  end
  if known then
    local was, there = string.match(known, '^(%x+) (%S+)$')
    places[#places + 1] = was == digest and there or '!'
  else
    append(log, ARGV[index], ARGV[index + 2])
    places[#places + 1] = place(log)
    if digest ~= '' then
      redis.call('SET', KEYS[key], digest .. ' ' .. place(log), 'PX', ARGV[7])
    end
  end
end
trim(log)
save(log)
answer = table.concat(places, ' ')
redis.call('SET', KEYS[1], answer, 'PX', ARGV[8])
return answer
""",
)

# ARGV: ..., stream, an epoch that is to end or "".
HEAD = Script.of(
    LOG,
    """
local log = open(ARGV[6])
if log.epoch == ARGV[7] then begin(log) end
if log.begun then save(log) end
return place(log)
""",
)

# KEYS: hash, entries, steps. ARGV: ms. Returns nothing where there is no log.
SINCE = Script.of(
    """
local meta = redis.call('HMGET', KEYS[1], 'e', 'o', 'k', 'f')
if not meta[1] then return nil end
local time = redis.call('TIME')
local oldest = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[1]
local offset = tonumber(meta[4])
for _, step in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
  local at, last = string.match(step, '^(%d+) (%d+) ')
  if tonumber(at) >= oldest then break end
  offset = math.max(offset, tonumber(last))
end
local id = string.format('%.0f-0', offset + 1)
local next = redis.call('XRANGE', KEYS[2], id, id)[1]
if next then
  local mark = string.match(next[2][2], ' (%S+)$')
  return meta[1] .. '.' .. string.format('%.0f', offset) .. '.' .. mark
end
return meta[1] .. '.' .. meta[2] .. '.' .. meta[3]
"""
)

# KEYS: hash, entries. ARGV: epoch, offset and mark to read after; entries, bytes to stop at.
READ = Script.of(
    """
local head = redis.call('HMGET', KEYS[1], 'e', 'o', 'k')
local after, most, bytes = tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[5])
if head[1] ~= ARGV[1] then return 'epoch' end
if after > tonumber(head[2]) then return 'rollback' end
if after == tonumber(head[2]) then return head[3] == ARGV[3] and {} or 'fork' end
if redis.call('EXISTS', KEYS[2]) == 0 then return 'epoch' end
local found, from = {}, string.format('%.0f-0', after + 1)
while #found < most and bytes > 0 do
  local some = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', math.min(16, most - #found))
  if #some == 0 then break end
  for _, entry in ipairs(some) do
    found[#found + 1] = entry
    for _, value in ipairs(entry[2]) do bytes = bytes - #value end
  end
  from = '(' .. some[#some][1]
end
if #found == 0 then return 'trimmed' end
return found
"""
)

# KEYS: digests by the time they were left. ARGV: digest, time since which the asker is there or "",
# ms to remember. Returns that time, and how many other digests were left after it.
MEET = Script.of(
    """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local begun = tonumber(ARGV[2]) or now
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now - ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local found = redis.call('ZCOUNT', KEYS[1], string.format('(%.0f', begun), '+inf')
return {string.format('%.0f', begun), now > begun and found - 1 or found}
"""
)

ALL = (APPEND, HEAD, SINCE, READ, MEET)
