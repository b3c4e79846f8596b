"""What does not work at members that serve nevertheless: told to the directory, and by the process that started the cluster."""
