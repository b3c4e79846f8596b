"""Commands for whoever operates a cluster: its processes on this machine, and its nodes."""
