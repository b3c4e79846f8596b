"""vLLM with the connector beside vLLM alone, both in an environment of vLLM's."""
