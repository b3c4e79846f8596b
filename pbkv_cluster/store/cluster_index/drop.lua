-- Removes a worker's blocks, and tells the change stream.
-- KEYS: the worker's blocks, its draft, change stream. ARGV: worker, time to live in ms, entries of the stream.
redis.call('UNLINK', KEYS[1], KEYS[2])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], '*', 'k', 'd', 'w', ARGV[1], 'n', '0', 'c', '')
redis.call('PEXPIRE', KEYS[3], ARGV[2])
