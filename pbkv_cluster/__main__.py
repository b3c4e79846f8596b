"""`python -m pbkv_cluster` runs the `pbkv` command, where its script is not on the path."""

from pbkv_cluster.cli.main import main

main()
