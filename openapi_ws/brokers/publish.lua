-- Append a message to a channel's history and publish it, in one step.
-- KEYS  1 meta hash: e epoch, o offset of the last message, n its nonce   2 stream   3 idempotency string
-- ARGV  1 message   2 messages kept   3 milliseconds they are kept   4 milliseconds the meta hash is kept
--       5 channel   6 PUBLISH or SPUBLISH   7 epoch to begin where there is none   8 nonce of this message
--       9 milliseconds that the idempotency key is kept, 0 for no key   10 "1" where an earlier attempt may have run
-- Returns {"ok" or "dup", position}. An entry carries the nonce of the one before it, so that whoever reads on can
-- prove that nothing lies between.
local meta, stream, idempotency = KEYS[1], KEYS[2], KEYS[3]
local keep = tonumber(ARGV[9])
if keep > 0 then
  local first = redis.call('GET', idempotency)
  if first then return {'dup', first} end
end
local known = redis.call('HMGET', meta, 'e', 'n')
local epoch, previous = known[1], known[2] or ''
if epoch and ARGV[10] == '1' then
  for _, entry in ipairs(redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1000)) do
    if entry[2][4] == ARGV[8] then
      return {'dup', epoch .. '.' .. string.match(entry[1], '^%d+') .. '.' .. ARGV[8]}
    end
  end
end
if not epoch then
  epoch = ARGV[7]
  -- The meta hash may be lost while the stream is not: a new epoch counts from 1, which XADD would refuse then.
  redis.call('DEL', stream)
  redis.call('HSET', meta, 'e', epoch)
end
local offset = redis.call('HINCRBY', meta, 'o', 1)
redis.call('HSET', meta, 'n', ARGV[8])
redis.call('PEXPIRE', meta, ARGV[4])
redis.call('XADD', stream, 'MAXLEN', ARGV[2], offset .. '-0', 'd', ARGV[1], 'n', ARGV[8], 'p', previous)
redis.call('PEXPIRE', stream, ARGV[3])
local position = epoch .. '.' .. offset .. '.' .. ARGV[8]
redis.call(ARGV[6], ARGV[5], 'P' .. position .. '.' .. previous .. '\n' .. ARGV[1])
if keep > 0 then redis.call('SET', idempotency, position, 'PX', keep) end
return {'ok', position}
