-- Replaces a value.
-- KEYS: the value. ARGV: the new one, seconds that it lives.
-- Returns the one before; false if there was none.
return redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2], 'GET')
