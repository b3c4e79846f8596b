"""The disk tier of a worker: slots in one preallocated file, which describe themselves as those of the arena do."""
