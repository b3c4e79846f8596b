"""Commands for operators of a running cluster: its caches, its workflows and their agents."""
