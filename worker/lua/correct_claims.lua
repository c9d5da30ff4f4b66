-- Let claims name the originals that Postgres has, and remove those of nothing that it has. Returns the first
-- error met on the way, or false.
-- Why Lua: one round trip for a whole batch. Claims are hints: when memory is full they are skipped.
-- KEYS the claims  ARGV 1 seconds to live, 2.. the entry for each, '' for none
local failure = false
for i, key in ipairs(KEYS) do
  local reply
  if ARGV[i + 1] == '' then
    reply = redis.pcall('DEL', key)
  else
    reply = redis.pcall('SET', key, ARGV[i + 1], 'EX', ARGV[1])
  end
  if type(reply) == 'table' and reply.err then failure = failure or reply.err end
end
return failure
