"""What runs under Ray: the session, its processes, the actors."""
