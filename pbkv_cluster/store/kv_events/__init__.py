"""Events of a worker's KV cache over ZeroMQ, as vLLM publishes and consumes them (`vllm/distributed/kv_events.py`)."""
