"""Before and while a cluster starts: checks, stages, files of its own."""
