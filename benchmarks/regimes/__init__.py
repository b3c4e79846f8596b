"""When does a policy help? A sweep of what matters, one thing at a time, in virtual time. `points` says what is swept."""
