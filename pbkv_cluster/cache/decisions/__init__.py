"""The last decisions of a cache: `log` keeps them, `reasons` says in words what their reason codes mean."""
