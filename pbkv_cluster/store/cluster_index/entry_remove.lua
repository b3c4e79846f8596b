-- Removes an entry and takes it out of its table.
-- KEYS: entry, table. ARGV: id, payload that must be there now ('' for any), text that it must contain ('' for any).
if ARGV[2] ~= '' or ARGV[3] ~= '' then
    local present = redis.call('GET', KEYS[1])
    if ARGV[2] ~= '' and present ~= ARGV[2] then
        return
    end
    if ARGV[3] ~= '' and present and not string.find(present, ARGV[3], 1, true) then
        return
    end
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[1])
