"""What the model and forecasts say about the blocks of active workflows. See the guide in `pbkv_cluster.reuse`."""
