"""vLLM with the connector beside vLLM alone (`benchmark`), and our engine beside vLLM's (`engines`).

vLLM has an environment of its own, whose interpreter `--vllm` names.
"""
