-- Repair a claim that contradicts Postgres, or remove it. Returns 1, or 0 where it has changed meanwhile.
-- Why Lua: a worker may set it between a look and a repair, and knows better.
-- KEYS 1 claim  ARGV 1 the value seen, '' for a key of another kind, 2 the right value, '' for none
local value = redis.pcall('GET', KEYS[1])
if (type(value) == 'string' and value or '') ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1
