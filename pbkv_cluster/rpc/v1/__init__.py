"""Generated from proto/pbkv/v1 by `make proto`; not to be edited."""
