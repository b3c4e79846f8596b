"""A GPU worker: engine, scheduler, model and KV memory of one device. It runs without Ray and Redis installed.

`server.WorkerServer` puts it together. A step passes these files:

1. `servicer`, `step_wire` and `store_servicer`: the wire. `engine/engine_thread`: carries calls and outputs between the event
   loop and the engine's thread.
2. `engine/engine`: checks the request, and turns it into an `engine/sequence`.
3. `engine/queue/`: where it waits. `engine/scheduler`: admits it to the cache (`pbkv_cluster.cache`) and fills the batches;
   `engine/loads`: whether it may be in one while its blocks are still being loaded.
4. `engine/runner`: the contract; `model/torch_runner`: a batch through the model (`model/forward`). `attention/`: reads and
   writes `kv/storage`, each layer when it has arrived (`attention/arriving`).
5. `kv/transfer_engine`: copies blocks between GPU and host memory, as the cache decides, by `kv/block_copies` or
   `kv/cuda_copies` (in one of two ways: `kv/copy_methods`), urgent ones first (`kv/lanes/copy_lane`) and layer by layer
   (`kv/layer_events`); how fast that goes: `kv/lanes/lane_speed`;
   `kv/host_region`: the host tier, in the worker's region of the arena, which `kv/arena_region` leases;
   `kv/other_workers`: who else has a block, and how it is read from there;
   `kv/host_arrivals`: what comes to the host tier from the disk and from others.
6. `engine/sampler`: the next token. `engine/text_stream`: its text, without what may become a stop string.
7. `direct/`: output on its way to clients that are connected to the worker; else it goes to the gateway.

Around these: `model/loading` (weights and namespace), `model/inference_only` (keeps out what a worker does not need),
`model/probe` and `model/trial` (whether the engine runs a model rightly), `model/rotary` (rotary factors that switch with
a sequence's length), `model/hidden_state` (a summary of the prompt for the predictor), `predictor_link/` (forecasts and
model updates in, access logs out), for operators `cache_listing` (what is cached, and whether it is sound),
`cache_explaining` (why a block lies where it does), `block_pages` (what the cluster index should say) and `store_stat`,
`figures` (the worker's metrics) and `pool_memory` (what it tells of its tiers' memory).
"""
