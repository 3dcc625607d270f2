"""Engines that run the small model: a protocol, one HTTP client for all, and an embedded server."""
