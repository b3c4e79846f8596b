"""The arena: one segment of shared memory per node, each region of it written by one process; its layout lets all read it."""
