-- Let claims name the originals that Postgres has. Returns the first error met on the way, or false.
-- Why Lua: one round trip for a whole batch. Claims are hints: when memory is full they are skipped.
-- KEYS the claims  ARGV 1 seconds to live, 2.. the entry for each
local failure = false
for i, key in ipairs(KEYS) do
  local reply = redis.pcall('SET', key, ARGV[i + 1], 'EX', ARGV[1])
  if reply.err then failure = failure or reply.err end
end
return failure
