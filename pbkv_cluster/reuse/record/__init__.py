"""What workflows have read and written. See the guide in `pbkv_cluster.reuse`."""
