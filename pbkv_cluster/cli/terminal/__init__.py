"""What people read in a terminal: tables and figures, and names that others have chosen, which it must not obey."""
