"""Learning that takes seconds: `jobs` are handed to a trainer, `process` is the process that runs one."""
