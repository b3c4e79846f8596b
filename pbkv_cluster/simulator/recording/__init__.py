"""Traces of what happens now: from a running cluster, or from calls of a model that were logged as text.

`ids` are keyed hashes in the place of text and tokens. `known_blocks` makes prompt segments of the block keys of a cluster's
steps, `cluster` feeds a recorder with them. `recorder` holds open workflows, and `trace_file` is the file that they are written
to once they have ended.
"""
