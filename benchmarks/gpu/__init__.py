"""Copies and kernels on a GPU: loads, and how far computing hides them.

`device` is a GPU or its twin on the CPU, on which the same code runs; `pools` are block pools with KV in every slot; `stack` is
the layers of a model without a checkpoint. `loads`, `overlap` and `attention` measure, and `benchmark` runs them. All of that
needs torch, CuPy, numpy, xxhash and rich; nothing imports Ray, Redis, pydantic, gRPC or transformers.
"""
