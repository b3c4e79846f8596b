"""The other gateways of the cluster.

Each workflow is held by one gateway, which its entry in the directory names. The holder alone numbers the steps, runs them,
and tells workers and predictor of them; any other gateway passes calls on to it. Where the holder is gone, the next gateway
that is called takes the workflow over, by compare-and-set on the entry: `workflow/lifecycle.py`.

    peers.py                    who this gateway is, which others are gone, links to those that are not
    link.py                     calls to one of them
    everywhere.py, merging.py   the same question to all of them, and their answers put together
"""
