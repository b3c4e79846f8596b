"""What is learnt from the access logs of ended workflows. See the guide in `pbkv_cluster.reuse`."""
