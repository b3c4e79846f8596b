-- Writes a record under a lease and enters it in its table.
-- KEYS: record, table. ARGV: id, payload, lease in ms, payload that must be there now ('' for any or none).
-- Returns 1 if written. Time is the server's own, so the clocks of its clients need not agree.
if ARGV[4] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[4] then
    return 0
end
local lease = tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], ARGV[2], 'PX', lease)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
redis.call('ZADD', KEYS[2], now + lease, ARGV[1])
-- The table itself goes with its last lease.
if redis.call('PTTL', KEYS[2]) < lease then
    redis.call('PEXPIRE', KEYS[2], lease)
end
return 1
