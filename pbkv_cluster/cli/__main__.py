"""`python -m pbkv_cluster.cli` runs the `pbkv` command too."""

from pbkv_cluster.cli.main import main

main()
