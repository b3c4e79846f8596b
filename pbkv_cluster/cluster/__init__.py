"""The frame: what runs where, under Ray. The only importer of it."""
