"""What every layer shares: tokens, block keys, events, forecasts, usage, configuration, clock, checks and errors."""
