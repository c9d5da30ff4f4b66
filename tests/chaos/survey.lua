-- What a group has done with its stream: entries delivered and acknowledged are delivered and not pending.
-- Trims what was surveyed before and is settled still, so that the survey stays short.
-- Returns the id before which all is settled, how many entries the stream holds, and the acknowledged ids.
-- KEYS 1 stream  ARGV 1 group, 2 the id up to which an earlier survey was looked through
local groups, delivered = redis.pcall('XINFO', 'GROUPS', KEYS[1]), nil
for _, group in ipairs(groups.err and {} or groups) do
  local fields = {}
  for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
  if fields['name'] == ARGV[1] then delivered = fields['last-delivered-id'] end
end
if not delivered then return { '0-0', redis.call('XLEN', KEYS[1]), {} } end

local function before(a, b)
  local a_ms, a_seq = a:match('(%d+)-(%d+)')
  local b_ms, b_seq = b:match('(%d+)-(%d+)')
  if a_ms ~= b_ms then return tonumber(a_ms) < tonumber(b_ms) end
  return tonumber(a_seq) < tonumber(b_seq)
end

local pending, oldest = {}, nil
for _, item in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000000)) do
  oldest = oldest or item[1]
  pending[item[1]] = true
end
if oldest == nil or before(delivered, oldest) then oldest = delivered end
redis.pcall('XTRIM', KEYS[1], 'MINID', before(ARGV[2], oldest) and ARGV[2] or oldest)

local acknowledged = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', delivered)) do
  if not pending[entry[1]] then acknowledged[#acknowledged + 1] = entry[1] end
end
return { oldest, redis.call('XLEN', KEYS[1]), acknowledged }
