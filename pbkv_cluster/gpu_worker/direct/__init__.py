"""Output that goes straight to clients.

A client that names a receiver with its steps is invited, through the gateway, to connect it to this worker. From then on the
worker sends it the output of its steps, and tells the gateway of the first of it and of the end.

tickets     with which receivers may connect
receivers   those that are connected
handover    the output of one step, on its way to both
servicer    the wire
"""
