"""Where things are, as text: addresses of services, URLs, paths of models. Checked and shown here, never opened."""
