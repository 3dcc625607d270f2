"""Readers of other systems' logs: rows in their published shapes to our call records."""
