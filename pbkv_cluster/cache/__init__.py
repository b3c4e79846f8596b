"""One worker's KV cache: it decides which blocks lie where. It moves no bytes, and has no clock, thread or network of its own.

`cache.KVCache` is the whole; `factory.make_cache` makes one, with a guard. A step passes these files:

1. `step_identity`: which step asks for blocks. `sequence/admission`: its four phases, from match to block table.
   `sequence/fetch`: blocks that other workers have, as `tiers/elsewhere` says.
2. `tree/prefix_tree`: the longest cached prefix. `tree/node`: a run of blocks, its owners, and its slot in each tier.
3. `owners`: the active workflows; tells the policies of the step and ranks nodes anew.
4. `tiers/tiers`: room on the GPU, and loads from slower tiers. `copy_costs`: whether these are faster than to compute.
   `tiers/evictor`: what leaves a tier, and where it goes.
   `tiers/order` and `eviction`: which node is next to leave; `policies/`: the values behind that.
5. `tiers/transfer`: what an engine is asked to copy. `tiers/in_flight` and `tiers/pool`: which slots are busy until it has.
6. `sequence/handle` and `sequence/block_table`: what the step gets, and goes on with while it runs.
7. `sequence/commit`: blocks that have been computed enter the tree. `sequence/late_writes`: copies of those that were fetched.
8. `sequence/remote`: steps of the same workflows on other workers, which the record, the policies and the owners hear of, too.

Between two steps, `prefetch/` loads blocks to the GPU ahead of their use. `tiers/prefetch_ledger` counts what becomes of them.
`requests`: prefetches and block leases, as clients ask for them; `tiers/leases` ends each lease in time.

Around these: `observer` and `guard/` compare the policy with LRU in shadows of the cache; `tiers/announcements` tells a
listener which tiers hold each block; `sequence/stored_blocks` rebuilds the tree from blocks that have outlived a process;
`inventory` lists what is cached, and `explanation` tells of one block what it is worth, for operators; `decisions/` keeps the
last decisions about blocks; `integrity` checks everything, for tests.
"""
