"""What keeps one tenant from taking everything: shares of a bounded queue, and turns."""
