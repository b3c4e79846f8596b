"""Blocks from another process over loopback: our transport beside plain copies, sockets, gRPC, Ray and Mooncake.

benchmark.py      all of them in turn, and their ratios
child.py          another process that is driven line by line
sockets.py        plain sockets, three ways to send: what a transport can reach at most
ours.py           a host store's server of blocks, and `PeerSource`
over_grpc.py      a server stream of gRPC
over_ray.py       Ray's object store: two nodes on this machine, one pulls from the other
over_mooncake.py  Mooncake Store over TCP, run by the interpreter of an environment of its own
over_flight.py    Arrow Flight, likewise
"""
