"""Connections to the Redis server that has a cluster's keys, wherever it is now.

primary                 which server that is, by Sentinels or by a Redis Cluster
connection              connections that look it up, and do so again when it has moved
"""
