"""The `pbkv` command. Each command has its own module; `main` puts them together and turns errors into messages.

What is heavy (Ray, torch, gRPC) is imported where a command runs, so that `pbkv --help` answers at once.
"""
