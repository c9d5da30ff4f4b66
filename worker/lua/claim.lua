-- Claim content hashes, each for its entry. Returns the oldest entry that is pending in the group, false where that
-- is not known; then for each: false where the entry has it now, else the value that stands.
-- Why Lua: one round trip for a whole batch, and SET NX GET in one command needs Redis 7.
-- KEYS 1 stream, 2.. the claims (same hash tag); where these are on a Redis of their own, the claims alone
-- ARGV 1 group, '' where the stream is elsewhere, 2 seconds to live, 3.. the entry that claims each
local oldest, first = false, 0
if ARGV[1] ~= '' then
  local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1)
  oldest, first = pending[1] and pending[1][1] or false, 1
end
local answers = { oldest }
for i = 1, #KEYS - first do
  local key = KEYS[first + i]
  if redis.call('SET', key, ARGV[2 + i], 'NX', 'EX', ARGV[2]) then
    answers[1 + i] = false
  else
    local value = redis.pcall('GET', key)
    answers[1 + i] = type(value) == 'string' and value or ''  -- a key of another kind says nothing
  end
end
return answers
