"""The trial of a loaded model.

`self_test` runs it, `long_prompt` bounds what it costs, and `logits` says which differences rounding explains.
"""
