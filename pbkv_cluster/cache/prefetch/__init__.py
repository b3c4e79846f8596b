"""Prefetch: blocks are loaded to the GPU before a step asks for them, while the engine only decodes.

1. `prefetcher`: asked between two batches. How much, how often, and into which GPU slots.
2. `planner`: what is worth loading now: the prompts of queued steps, then what active workflows are likely to use soon.
   `missing`: a few workflows at a time, in turn.
   `stager`: from the disk and other nodes to host memory, as carefully.
3. `usefulness`: which share of the latest prefetched blocks was used; what takes the place of other blocks is loaded only
   while that is good. The blocks are counted by `tiers/prefetch_ledger`.
4. `early_demotion`: meanwhile, the other way, what is next to leave the GPU is copied to the next tier.
"""
