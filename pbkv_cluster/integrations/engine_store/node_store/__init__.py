"""A host store of its own for a node where `pbkv serve` does not run: its process, and how engines find or start it."""
