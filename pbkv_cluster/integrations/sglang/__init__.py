"""SGLang: its pages in our store, and an eviction order for its prefix tree.

1. `hicache`: `PbkvHiCache`, which SGLang loads as storage backend `dynamic` of its hierarchical cache.
2. `pages`: the pages of one of SGLang's host pools as blocks of an `EngineStore`.
3. `plugin`: what SGLang calls when it starts, through the entry point `sglang.srt.plugins`: it makes `--radix-eviction-policy
   pbkv-lfu` known.
4. `aged_uses`: that policy. It counts uses, older ones less. Learned reuse needs to know which workflow a request belongs to,
   which SGLang's tree does not tell its eviction strategies.

Only `hicache` and `plugin` import SGLang.
"""
