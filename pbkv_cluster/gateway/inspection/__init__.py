"""What operators look at. `servicer` is the wire; `path` reads a workflow's steps from its events; `agents` counts by agent;
`watchers` tells of steps as they end.
"""
