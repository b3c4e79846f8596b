"""What has been learnt, saved: `encoding` packs it, `file` writes and reads it, `saver` does so while the server runs."""
