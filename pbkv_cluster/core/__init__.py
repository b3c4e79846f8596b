"""Values that every layer shares: tokens, block keys, events, forecasts, configuration, clock, errors."""
