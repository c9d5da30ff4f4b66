-- Claim content hashes. Returns for each: false where the claim is ours now, else the value that stands.
-- Why Lua: one round trip for a whole batch, and SET NX GET in one command needs Redis 7.
-- KEYS the claims  ARGV 1 our token, 2 seconds to live
local answers = {}
for i, key in ipairs(KEYS) do
  if redis.call('SET', key, ARGV[1], 'NX', 'EX', ARGV[2]) then
    answers[i] = false
  else
    local value = redis.pcall('GET', key)
    answers[i] = type(value) == 'string' and value or ''  -- a key of another kind says nothing
  end
end
return answers
