"""The network of PBKV (arXiv 2605.06472): what it reads (`examples`), its layers (`model`), its weights
as plain arrays (`weights`), fast forecasts with them (`inference`), and training (`job`). The expert is `experts/network.py`.
"""
