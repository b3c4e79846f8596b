"""The wire: generated protobuf code, conversions to the project's values, server and channel helpers."""
