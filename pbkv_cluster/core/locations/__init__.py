"""Where things are: addresses, URLs and paths of models as text, checked and never opened; and in which tiers a block lies."""
