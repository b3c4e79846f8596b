"""Sending forecasts: `broadcaster` gives each subscriber those that it needs, `subscription` holds them until they are read."""
