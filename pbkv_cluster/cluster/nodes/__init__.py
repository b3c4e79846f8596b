"""Which members run on which node, while nodes join and leave."""
