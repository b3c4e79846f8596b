-- Replaces all blocks of a worker by a draft, and tells the change stream.
-- KEYS: the worker's blocks, the draft, change stream. ARGV: worker, time to live in ms, entries of the stream.
-- Numbers of changes go on from the server's time in microseconds: whatever a reader has seen of an earlier life of the
-- worker or of the server, the next number does not seem to follow it.
local blocks, draft, stream = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local number = string.format('%.0f', time[1] * 1000000 + time[2])
redis.call('HSET', draft, '', number)
redis.call('UNLINK', blocks)
redis.call('RENAME', draft, blocks)
redis.call('PEXPIRE', blocks, ARGV[2])
redis.call('XADD', stream, 'MAXLEN', '~', ARGV[3], '*', 'k', 'a', 'w', ARGV[1], 'n', number, 'c', '')
redis.call('PEXPIRE', stream, ARGV[2])
