"""Commands that speak with software of others."""
