-- Makes a call once. Its answer is kept under the id of the call, for a client that sends the call again because the answer
-- was late.
-- call: what the call does. KEYS: its keys, the answer. ARGV: its arguments, ms for which the answer is kept.
local answer = KEYS[#KEYS]
local kept = redis.call('GET', answer)
if kept then
    return cmsgpack.unpack(kept)
end
local made = call()
redis.call('SET', answer, cmsgpack.pack(made), 'PX', ARGV[#ARGV])
return made
