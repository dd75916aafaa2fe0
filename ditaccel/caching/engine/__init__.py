"""What carries caching methods out: gates and forecasts, targets, guidance, memory, hooks."""
