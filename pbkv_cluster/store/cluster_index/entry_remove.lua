-- Removes an entry and takes it out of its table.
-- KEYS: entry, table. ARGV: id, payload that must be there now ('' for any).
-- Returns 1 if it was there.
if ARGV[2] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[2] then
    return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])
