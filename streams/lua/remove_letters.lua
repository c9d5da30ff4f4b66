-- Remove dead letters, and their places in the index. Returns how many were there.
-- Why Lua: an index that names a letter that is gone would keep its entry from being set aside again.
-- KEYS 1 dead letters, 2 their index (same hash tag)  ARGV letter id and entry id of each
local removed = 0
for i = 1, #ARGV, 2 do
  removed = removed + redis.call('XDEL', KEYS[1], ARGV[i])
  if redis.call('HGET', KEYS[2], ARGV[i + 1]) == ARGV[i] then
    redis.call('HDEL', KEYS[2], ARGV[i + 1])
  end
end
return removed
