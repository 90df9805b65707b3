-- Read what was published after a position, or why it cannot be had. It decides and reads in one step.
-- KEYS  1 meta hash   2 stream, as in publish.lua
-- ARGV  1 epoch of the position, "" for none   2 its offset   3 its nonce   4 messages at most
--       5 milliseconds the meta hash is kept   6 epoch to begin where there is none   7 "1": a part is welcome, too
-- Returns {status, epoch, offset, nonce of the last message, entries}; status is top, ok, more, epoch, fork, trimmed or
-- limit.
local meta, stream = KEYS[1], KEYS[2]
local known = redis.call('HMGET', meta, 'e', 'o', 'n')
local epoch, top, nonce = known[1], tonumber(known[2] or '0'), known[3] or ''
if not epoch then
  epoch, top, nonce = ARGV[6], 0, ''
  redis.call('DEL', stream)
  redis.call('HSET', meta, 'e', epoch)
end
redis.call('PEXPIRE', meta, ARGV[5])
local function answer(status, entries) return {status, epoch, top, nonce, entries or {}} end
if ARGV[1] == '' then return answer('top') end
if ARGV[1] ~= epoch then return answer('epoch') end
local since, limit = tonumber(ARGV[2]), tonumber(ARGV[4])
if since > top then return answer('fork') end
if since == top then return answer(ARGV[3] == nonce and 'ok' or 'fork') end
local entries = redis.call('XRANGE', stream, (since + 1) .. '-0', '+', 'COUNT', limit)
if #entries == 0 or tonumber(string.match(entries[1][1], '^%d+')) ~= since + 1 then return answer('trimmed') end
if entries[1][2][6] ~= ARGV[3] then return answer('fork') end
if top - since > limit then
  if ARGV[7] ~= '1' then return answer('limit') end
  return answer('more', entries)
end
return answer('ok', entries)
