-- Writes an entry and adds it to its table, both with a time to live.
-- KEYS: entry, table. ARGV: id, payload, time to live in ms, text that an entry that is there must contain ('' for any), '1' if
-- there must be one.
-- Returns 1 if it was written.
-- Time is the server's own, so the clocks of its clients need not agree.
if ARGV[4] ~= '' then
    local present = redis.call('GET', KEYS[1])
    if not present and ARGV[5] == '1' then
        return 0
    end
    if present and not string.find(present, ARGV[4], 1, true) then
        return 0
    end
end
local ttl = tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], ARGV[2], 'PX', ttl)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
redis.call('ZADD', KEYS[2], now + ttl, ARGV[1])
-- The table itself expires with its last entry.
if redis.call('PTTL', KEYS[2]) < ttl then
    redis.call('PEXPIRE', KEYS[2], ttl)
end
return 1
