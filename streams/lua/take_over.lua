-- Claim entries nobody has acknowledged for a while, oldest first. Returns the last id looked at, or false after
-- the last; the claimed entries as id, fields, deliveries each; and the ids of those that were trimmed.
-- Why Lua: XAUTOCLAIM forgets what is pending and trimmed as it names it (Redis 7), or does not name it at all
-- (6.2), and whoever dies then leaves no trace of it. Here a trimmed entry stays pending, its owner's, until it
-- is acknowledged; two workers may be told of it, and its rejection is recorded once.
-- KEYS 1 stream  ARGV 1 group, 2 the caller's name, 3 milliseconds of quiet, at least, 4 where to begin,
--      5 how many at most
local stream, group = KEYS[1], ARGV[1]
local rows = redis.call('XPENDING', stream, group, 'IDLE', ARGV[3], ARGV[4], '+', ARGV[5])
local entries, trimmed = {}, {}
for _, row in ipairs(rows) do
  if #redis.call('XRANGE', stream, row[1], row[1]) == 0 then
    trimmed[#trimmed + 1] = row[1]
  else
    local entry = redis.call('XCLAIM', stream, group, ARGV[2], 0, row[1])[1]
    entries[#entries + 1] = { entry[1], entry[2], row[4] + 1 }
  end
end
return { #rows > 0 and rows[#rows][1] or false, entries, trimmed }
