"""What Redis does with grants in one step, in Lua.

``g:TOKEN``
    hash: stream ``s``, position ``p`` and body ``b`` of the grant; number of takes ``n``;
    ``h``, ``r``, ``x``: held, resumable, revoked; ``c``: the call that changed it last.
``w:deadlines``
    sorted set: "SIZE TOKEN" of each grant that nobody has taken, by the time at which it ends.
    One that is revoked before it was taken stays in it until that time.
``w:bytes``
    text: the sum of these sizes. Where Redis has evicted one of the two they disagree, until no
    grant waits.

What ends is dropped by the next grant, up to a thousand at a time.
"""

from __future__ import annotations

from syncserver.engines.redis_scripts import LOG, Script

DROPPED_AT_ONCE = 1_000

# KEYS: grant, deadlines, bytes. ARGV: stream, position, body, ms; size, token; the most that may
# wait, and the most bytes; how many to drop. Returns 0 if as many wait as may.
PUT = Script.of(
    """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local one, ends = ARGV[5] .. ' ' .. ARGV[6], string.format('%.0f', now + ARGV[4])
local over = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now),
  'LIMIT', 0, ARGV[9])
local count = redis.call('ZCOUNT', KEYS[2], string.format('(%.0f', now), '+inf')
local bytes = tonumber(redis.call('GET', KEYS[3]) or 0)
if count == 0 and #over < tonumber(ARGV[9]) then bytes = 0 end
for _, other in ipairs(over) do
  bytes = bytes - (string.match(other, '^%d+') or 0)
end
bytes = math.max(bytes, 0)

local function drop()
  if #over > 0 then redis.call('ZREM', KEYS[2], unpack(over)) end
  redis.call('SET', KEYS[3], string.format('%.0f', bytes), 'KEEPTTL')
end

if not redis.call('ZSCORE', KEYS[2], one) then
  if count >= tonumber(ARGV[7]) or bytes + ARGV[5] > tonumber(ARGV[8]) then
    if #over > 0 then drop() end
    return 0
  end
  bytes = bytes + ARGV[5]
end
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 's', ARGV[1], 'p', ARGV[2], 'b', ARGV[3], 'n', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
drop()
redis.call('ZADD', KEYS[2], ends, one)
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[4]) then
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
  redis.call('PEXPIRE', KEYS[3], ARGV[4])
end
return 1
"""
)

# ARGV: ..., call, resumable, ms, mark, the notice before and after the number; size of the rest
# of a grant, token. KEYS: grant, deadlines, bytes.
TAKE = Script.of(
    LOG,
    """
local grant = redis.call('HMGET', KEYS[1], 's', 'p', 'b', 'n', 'h', 'r', 'x', 'c')
if not grant[1] then return 'missing' end
if grant[7] == '1' then return 'revoked' end
local takes = tonumber(grant[4])
if grant[8] ~= ARGV[6] then
  local size = #grant[3] + ARGV[12]
  local one = text(size) .. ' ' .. ARGV[13]
  local waits = takes == 0 and redis.call('ZSCORE', KEYS[2], one)
  local bytes = waits and tonumber(redis.call('GET', KEYS[3]) or 0)
  if grant[5] == '1' then
    if grant[6] ~= '1' or ARGV[7] ~= '1' then return 'held' end
    notify(grant[1], ARGV[9], ARGV[10] .. text(takes + 1) .. ARGV[11])
  end
  takes = takes + 1
  redis.call('HSET', KEYS[1], 'n', takes, 'h', 1, 'r', ARGV[7], 'c', ARGV[6])
  if waits then
    redis.call('ZREM', KEYS[2], one)
    redis.call('SET', KEYS[3], text(math.max(bytes - size, 0)), 'KEEPTTL')
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[8])
return {grant[1], grant[2], grant[3], takes}
""",
)

# KEYS: grants. ARGV: ms. Returns the numbers of those that are no more.
RENEW = Script.of(
    """
local gone = {}
for index, key in ipairs(KEYS) do
  local grant = redis.call('HMGET', key, 's', 'x')
  if not grant[1] or grant[2] == '1' then
    gone[#gone + 1] = index - 1
  else
    redis.call('PEXPIRE', key, ARGV[1])
  end
end
return gone
"""
)

# KEYS: grant. ARGV: take, ms.
RELEASE = Script.of(
    """
local grant = redis.call('HMGET', KEYS[1], 'n', 'x')
if grant[1] ~= ARGV[1] or grant[2] == '1' then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'h', 0)
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
)

# KEYS: grant. ARGV: ..., call, ms, mark, notice.
REVOKE = Script.of(
    LOG,
    """
local grant = redis.call('HMGET', KEYS[1], 's', 'x', 'c')
if not grant[1] then return 0 end
if grant[2] == '1' then return grant[3] == ARGV[6] and 1 or 0 end
notify(grant[1], ARGV[8], ARGV[9])
redis.call('HSET', KEYS[1], 'x', 1, 'c', ARGV[6], 'b', '')
redis.call('PEXPIRE', KEYS[1], ARGV[7])
return 1
""",
)

ALL = (PUT, TAKE, RENEW, RELEASE, REVOKE)
