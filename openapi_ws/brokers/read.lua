-- Read messages that are kept: the oldest, or the newest first, or those before a position.
-- KEYS  1 meta hash   2 stream, as in publish.lua
-- ARGV  1 epoch of the position, "" for none   2 its offset   3 its nonce   4 messages at most   5 milliseconds the meta
--       hash is kept   6 epoch to begin where there is none   7 "1": the newest first
-- Returns as recover.lua. Reading on from a position, oldest first, is recover.lua with ARGV[7] = "1".
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
local limit = tonumber(ARGV[4])
local last = '+'
if ARGV[1] ~= '' then
  local before = tonumber(ARGV[2])
  if ARGV[1] ~= epoch then return answer('epoch') end
  if before > top then return answer('fork') end
  if before == top and ARGV[3] ~= nonce then return answer('fork') end
  if before < top then
    local following = redis.call('XRANGE', stream, (before + 1) .. '-0', (before + 1) .. '-0')
    if #following == 1 and following[1][2][6] ~= ARGV[3] then return answer('fork') end
  end
  if before <= 1 then return answer('ok') end
  last = (before - 1) .. '-0'
end
local entries
if ARGV[7] == '1' then
  entries = redis.call('XREVRANGE', stream, last, '-', 'COUNT', limit + 1)
else
  entries = redis.call('XRANGE', stream, '-', last, 'COUNT', limit + 1)
end
if #entries > limit then
  table.remove(entries)
  return answer('more', entries)
end
return answer('ok', entries)
