-- Remove consumers that hold nothing. Returns how many.
-- Why Lua: XGROUP DELCONSUMER destroys pending entries, and between a look and a removal one may come.
-- KEYS 1 stream  ARGV 1 group, 2 the caller's name, 3 'self' or 'others', 4 milliseconds of quiet, at least
local removed = 0
if redis.call('EXISTS', KEYS[1]) == 0 then return removed end
for _, reply in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for i = 1, #reply, 2 do consumer[reply[i]] = reply[i + 1] end
  local wanted = (consumer.name == ARGV[2]) == (ARGV[3] == 'self')
  if wanted and consumer.pending == 0 and consumer.idle >= tonumber(ARGV[4]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
    removed = removed + 1
  end
end
return removed
