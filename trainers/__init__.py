"""How we learn: logs to data sets to adapters."""
