"""vLLM as a worker: `engine.type: vllm` puts vLLM's engine where ours would be, `mixed` puts it beside ours, and the rest of
the cluster sees no difference.

The member (`cluster/nodes/vllm_host`) starts a process with vLLM's interpreter, and restarts it like any worker's. In it:

    process.py         `python -m pbkv_cluster.integrations.vllm_worker.process`: takes its orders, tells its address
    parent_death.py    its end, and that of vLLM's processes, with their parents
    member.py          what it announces: the worker in the directory, its blocks in the index
    server.py          `VllmServer`: the parts put together
    environment.py     variables of the process, settings for plug-ins in vLLM, sockets
    servicer.py        the worker's service on the wire
    store_servicer.py  what operators ask of its cache
    steps.py           one step: a request for vLLM, and from what vLLM generates text, stop strings and the usage record
    held_blocks.py     what vLLM holds, from its KV events, under the cluster's block keys
    hints.py           forecasts on their way into vLLM, as `kv_hints` of the next request
    figures.py         metrics

    engine/llm.py        vLLM itself: the only module that imports it
    engine/contract.py   what the others expect of that module
    engine/arguments.py  vLLM's engine arguments from our settings and `vllm.args`
    engine/sampling.py   sampling parameters as vLLM has them
"""
