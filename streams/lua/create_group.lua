-- Make a group at the beginning of its stream, and the stream where it is missing. Returns whether it did.
-- Why Lua: what is gone from the stream by then is noted in the same step, for the group can never read it.
-- What an earlier group of this name had settled was trimmed on purpose, as far as is known; the rest is lost.
-- KEYS 1 stream, 2 the group's progress (same hash tag)  ARGV 1 group
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if made.err then
  if string.find(made.err, 'BUSYGROUP', 1, true) then return 0 end
  return made
end
local before = redis.call('HMGET', KEYS[2], 'settled', 'gone')
local known = (tonumber(before[1]) or 0) + (tonumber(before[2]) or 0)
local info = redis.call('XINFO', 'STREAM', KEYS[1])
local added = 0
for i = 1, #info, 2 do
  if info[i] == 'entries-added' then added = info[i + 1] end
end
local gone = math.max(0, added - redis.call('XLEN', KEYS[1]))
redis.call('HSET', KEYS[2], 'settled', 0, 'gone', math.min(gone, known))
return 1
