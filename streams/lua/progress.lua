-- How far a group has come: entries settled, pending, waiting to be read, and lost before it read them.
-- False where Redis does not tell: before version 7 it does not count what is added. Nothing without the group.
-- Why Lua: the figures belong to one moment. Redis' own `lag` hides a loss: once the group has read past
-- a gap, `entries-read` takes the entries that were trimmed unread for read ones.
-- KEYS 1 stream, 2 the group's progress (same hash tag)  ARGV 1 group
local function named(reply)
  local values = {}
  for i = 1, #reply, 2 do values[reply[i]] = reply[i + 1] end
  return values
end

if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
local group
for _, reply in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local values = named(reply)
  if values.name == ARGV[1] then group = values end
end
if not group then return {} end
local noted = redis.call('HMGET', KEYS[2], 'settled', 'gone')
local settled, gone = tonumber(noted[1]) or 0, tonumber(noted[2]) or 0

local waiting = group.lag or nil
if #redis.call('XRANGE', KEYS[1], '-', group['last-delivered-id'], 'COUNT', 1) == 0 then
  waiting = redis.call('XLEN', KEYS[1]) -- whatever it has read is trimmed, and maybe more
end
local added = named(redis.call('XINFO', 'STREAM', KEYS[1]))['entries-added']
local lost
if added and waiting then
  lost = math.max(0, added - gone - settled - group.pending - waiting)
end
return { settled, group.pending, waiting or false, lost or false, group['last-delivered-id'] }
