-- How much of one sequence of blocks each worker holds.
-- KEYS: for each worker its hash of block key to packed residency. ARGV: the block keys joined, bytes per key.
-- Returns, for each worker in turn, the length of the leading run on the GPU and of the leading run in any tier.
-- A worker that holds a block also holds the block's ancestors, in any tier and on the GPU, so bisection finds a run's end.
local joined, width = ARGV[1], tonumber(ARGV[2])
local length = #joined / width

local function run(hash, most, held)
    local low, high = 0, most
    while low < high do
        local middle = math.floor((low + high + 1) / 2)
        local residency = redis.call('HGET', hash, string.sub(joined, (middle - 1) * width + 1, middle * width))
        if residency and held(residency) then
            low = middle
        else
            high = middle - 1
        end
    end
    return low
end

local function anywhere(residency)
    return true
end

local function on_gpu(residency)
    return string.byte(residency) % 2 == 1
end

local found = {}
for _, hash in ipairs(KEYS) do
    local blocks = run(hash, length, anywhere)
    found[#found + 1] = run(hash, blocks, on_gpu)
    found[#found + 1] = blocks
end
return found
