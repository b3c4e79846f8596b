"""`python -m pbkv_cluster.cli`, where the `pbkv` script is not on the path."""

from pbkv_cluster.cli.main import main

main()
