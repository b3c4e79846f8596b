"""The network of PBKV (arXiv 2605.06472): what it reads, how it is built and trained. Its expert is `experts/network.py`."""
