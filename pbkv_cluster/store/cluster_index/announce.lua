-- Replaces all blocks of a worker by a draft, and tells the change stream.
-- KEYS: the worker's blocks, the draft, change stream. ARGV: worker, time to live in ms, entries of the stream, number of this
-- change, blocks in the draft.
-- Returns 0, having done nothing, if the draft has not so many: another server has taken over meanwhile; else 1.
local blocks, draft, stream = KEYS[1], KEYS[2], KEYS[3]
-- It is sent again because the answer was late. No other change has its number.
if redis.call('HGET', blocks, '') == ARGV[4] then
    return 1
end
if redis.call('HLEN', draft) ~= tonumber(ARGV[5]) then
    return 0
end
redis.call('HSET', draft, '', ARGV[4])
redis.call('UNLINK', blocks)
redis.call('RENAME', draft, blocks)
redis.call('PEXPIRE', blocks, ARGV[2])
redis.call('XADD', stream, 'MAXLEN', '~', ARGV[3], '*', 'k', 'a', 'w', ARGV[1], 'n', ARGV[4], 'c', '')
redis.call('PEXPIRE', stream, ARGV[2])
return 1
