"""The metrics of members: how they are asked for, and read."""
