"""Which chunks vLLM's CPU tier keeps: policy `pbkv`, with its record, model, ranking and guard, behind vLLM's plug-in point.

vLLM owns the bytes, the slots and the transfers; it asks its policy only which chunks to give up. Read in this order:

1. `policy`: `PbkvCachePolicy`, the calls that vLLM makes. The only module that imports vLLM.
2. `request`: the chunks of one request in the order of its prompt, and what the request says of its workflow.
3. `conversations`: recognises the workflow of a request that names none, by the prompts that it continues.
4. `reference_cache`: a `KVCache` without bytes, as large as the tier, that is shown every request. What it gives up has the
   least value, by learned reuse or, where the guard has found that to be worse, by recency.
5. `chunk_order`: the chunks in the tier. Those that the reference cache has given up go first, then the least recently used.
6. `learning`: learns from ended workflows on a thread of its own; `predictor_feed`: leaves that to a predictor, and takes its
   forecasts.

Words: a chunk is what vLLM stores under one key, one or more of its blocks. Here it is one block of the reference cache,
which knows it by the hash in its key instead of by its tokens.
"""
