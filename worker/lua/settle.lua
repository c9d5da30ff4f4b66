-- Settle a batch whose outcomes are on record: copy rejections, acknowledge.
-- Returns how many entries were acknowledged, how many of all could not be counted as settled, and the first
-- error met on the way or false.
-- Why Lua: one round trip, and of two workers holding a rejected entry only one may copy it. Scripts are
-- not rolled back, so copies precede acknowledgements: a failure repeats an entry, never loses it.
-- The index of dead letters, entry id to letter id, keeps a rejection that comes again from a second copy.
-- KEYS 1 stream, 2 dead letters, 3 their index, 4 the group's progress (same hash tag)
-- ARGV 1 group, 2 number of rejections, 3 settled before and not counted, 4.. entry id, code and reason for
--      each rejection, then the ids of the other entries
local stream, dead, index, progress, group = KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1]
local position, failure = 4, false

local function attempt(...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    failure = failure or reply.err
    return false
  end
  return reply
end

-- More values than Lua can pass to one call travel as one field, packed.
local function copy(id, code, reason)
  if redis.call('HEXISTS', index, id) == 1 then return true end
  local entry = redis.call('XRANGE', stream, id, id)[1]
  local fields = entry and entry[2] or {}
  if #fields > 4000 then fields = { 'packed', cmsgpack.pack(fields) } end
  local letter = attempt('XADD', dead, '*', 'entry_id', id, 'code', code, 'reason', reason, unpack(fields))
  return letter and attempt('HSET', index, id, letter)
end

local acknowledged = 0
for _ = 1, tonumber(ARGV[2]) do
  local id = ARGV[position]
  if #redis.call('XPENDING', stream, group, id, id, 1) > 0
    and copy(id, ARGV[position + 1], ARGV[position + 2]) then
    acknowledged = acknowledged + redis.call('XACK', stream, group, id)
  end
  position = position + 3
end
for first = position, #ARGV, 4000 do
  local last = math.min(first + 3999, #ARGV)
  acknowledged = acknowledged + redis.call('XACK', stream, group, unpack(ARGV, first, last))
end
local settled = tonumber(ARGV[3]) + acknowledged
if settled == 0 or attempt('HINCRBY', progress, 'settled', settled) then settled = 0 end
return { acknowledged, settled, failure }
