-- Enters changed blocks of a worker, renews it, and tells the change stream.
-- KEYS: the worker's blocks, change stream. ARGV: worker, changes, bytes of a key, bytes of a change, time to live in ms,
-- entries of the stream, number of the worker's latest change, id of this one. A change is a block key and the packed residency,
-- 0 for a block that is gone.
-- Returns 0, having done nothing, if the blocks are not as that change left them; else the number of the latest change now. That
-- may be this one, if it is sent again because the answer was late: then there is nothing left to do.
local blocks, stream = KEYS[1], KEYS[2]
local worker, changes, key_bytes, width = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local number, id = unpack(redis.call('HMGET', blocks, '', 'id'))
if number and id == ARGV[8] then
    return tonumber(number)
end
if number ~= ARGV[7] then
    return 0
end
local nowhere = string.rep('\0', width - key_bytes)
local held, gone = {}, {}
for at = 1, #changes, width do
    local key = string.sub(changes, at, at + key_bytes - 1)
    local residency = string.sub(changes, at + key_bytes, at + width - 1)
    if residency == nowhere then
        gone[#gone + 1] = key
    else
        held[#held + 1] = key
        held[#held + 1] = residency
    end
end
if #held > 0 then
    redis.call('HSET', blocks, unpack(held))
end
if #gone > 0 then
    redis.call('HDEL', blocks, unpack(gone))
end
if #changes > 0 then
    number = redis.call('HINCRBY', blocks, '', 1)
    redis.call('HSET', blocks, 'id', ARGV[8])
end
redis.call('XADD', stream, 'MAXLEN', '~', ARGV[6], '*', 'k', 'c', 'w', worker, 'n', number, 'c', changes)
redis.call('PEXPIRE', blocks, ARGV[5])
redis.call('PEXPIRE', stream, ARGV[5])
return tonumber(number)
