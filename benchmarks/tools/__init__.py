"""Prefetch on recorded workflows that wait for tools, side by side with none, in virtual time."""
