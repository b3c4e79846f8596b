"""What every layer shares: tokens, block keys, workflows as values, forecasts, usage, configuration, clock, checks, errors."""
