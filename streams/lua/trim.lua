-- Trim entries that are old and that every group has settled. Returns how many went; more may be left.
-- Why Lua: between a look at the groups and the trimming, one may go back or a new one come.
-- KEYS 1 stream  ARGV 1 milliseconds since 1970: what is younger stays, by its id, 2 at most about so many
local function before(a, b)
  local a_ms, a_seq = string.match(a, '(%d+)-(%d+)')
  local b_ms, b_seq = string.match(b, '(%d+)-(%d+)')
  if a_ms ~= b_ms then
    if #a_ms ~= #b_ms then return #a_ms < #b_ms end
    return a_ms < b_ms
  end
  if #a_seq ~= #b_seq then return #a_seq < #b_seq end
  return a_seq < b_seq
end

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
if #groups == 0 then return 0 end
local keep = ARGV[1] .. '-0'
for _, reply in ipairs(groups) do
  local group = {}
  for i = 1, #reply, 2 do group[reply[i]] = reply[i + 1] end
  local unsettled = group['last-delivered-id']
  if group.pending > 0 then  -- a group that was set back has yet to read what is before its pending ones
    local oldest = redis.call('XPENDING', KEYS[1], group.name)[2]
    if before(oldest, unsettled) then unsettled = oldest end
  end
  if before(unsettled, keep) then keep = unsettled end
end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', keep, 'LIMIT', ARGV[2])
