-- Who is present in a channel: what `Members` of members.py does, for all processes, by the clock of Redis.
-- KEYS  1 zset: connection and user -> millisecond until which it is present   2 zset of users, in the order of names
--       3 hash: user -> connections   4 hash: user -> info
-- ARGV  1 "enter", "leave" or "read"   2 channel   3 PUBLISH or SPUBLISH   4 milliseconds the keys outlive the last member
--       enter   5 connection   6 user   7 info   8 milliseconds it is present   9 "1": the info is news
--       leave   5 connection   6 user   7 milliseconds it lingers
--       read    5 users at most   6 "-", or "(" and the user that they follow
-- Returns {connections, users, {user, info, …}}. What changes is published: J, and JSON [[kind, user, info], …].
local connections, users, numbers, infos = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local step, name = ARGV[1], ARGV[5] .. ' ' .. ARGV[6]
local changes = {}

local function change(kind, user, info) changes[#changes + 1] = {kind, user, info} end

local function forget(gone)
  redis.call('ZREM', connections, gone)
  local user = string.sub(gone, string.find(gone, ' ', 1, true) + 1)
  if redis.call('HINCRBY', numbers, user, -1) <= 0 then
    change('leave', user, redis.call('HGET', infos, user) or 'null')
    redis.call('HDEL', numbers, user)
    redis.call('HDEL', infos, user)
    redis.call('ZREM', users, user)
  end
end

for _, late in ipairs(redis.call('ZRANGEBYSCORE', connections, '-inf', now, 'LIMIT', 0, 1000)) do
  if step ~= 'enter' or late ~= name then forget(late) end
end

local page = {}
if step == 'enter' then
  local user, info = ARGV[6], ARGV[7]
  if redis.call('ZADD', connections, now + ARGV[8], name) == 1 then redis.call('HINCRBY', numbers, user, 1) end
  local known = redis.call('HGET', infos, user)
  if not known then
    redis.call('ZADD', users, 0, user)
    redis.call('HSET', infos, user, info)
    change('join', user, info)
  elseif ARGV[9] == '1' and known ~= info then
    redis.call('HSET', infos, user, info)
    change('update', user, info)
  end
elseif step == 'leave' then
  if redis.call('ZSCORE', connections, name) then
    if tonumber(ARGV[7]) > 0 then redis.call('ZADD', connections, now + ARGV[7], name) else forget(name) end
  end
else
  for _, user in ipairs(redis.call('ZRANGEBYLEX', users, ARGV[6], '+', 'LIMIT', 0, ARGV[5])) do
    page[#page + 1] = user
    page[#page + 1] = redis.call('HGET', infos, user) or 'null'
  end
end

local last = redis.call('ZRANGE', connections, -1, -1, 'WITHSCORES')[2]
if last then
  local till = string.format('%.0f', last + ARGV[4])
  for _, key in ipairs(KEYS) do redis.call('PEXPIREAT', key, till) end
end
for first = 1, #changes, 50 do
  local some = {}
  for at = first, math.min(first + 49, #changes) do some[#some + 1] = changes[at] end
  redis.call(ARGV[3], ARGV[2], 'J' .. cjson.encode(some))
end
return {redis.call('ZCARD', connections), redis.call('ZCARD', users), page}
