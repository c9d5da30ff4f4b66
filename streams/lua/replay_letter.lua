-- Send a dead letter again: add the entry to its stream, and note of which it comes.
-- Returns the new entry's id or '', the ids of earlier replays, and 1 where the letter is gone.
-- Why Lua: the entry and the note are written both or not at all, and of two people with one letter only
-- one sends it again.
-- KEYS 1 stream, 2 dead letters, 3 what was replayed, entry id to new ids (same hash tag)
-- ARGV 1 entry id, 2 letter id, 3 '1' to send it once more, 4.. fields
local before = redis.call('HGET', KEYS[3], ARGV[1]) or ''
if #redis.call('XRANGE', KEYS[2], ARGV[2], ARGV[2]) == 0 then return { '', before, 1 } end
if before ~= '' and ARGV[3] ~= '1' then return { '', before, 0 } end
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 4))
redis.call('HSET', KEYS[3], ARGV[1], before == '' and id or before .. ' ' .. id)
return { id, before, 0 }
