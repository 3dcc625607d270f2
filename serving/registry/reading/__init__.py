"""The registry over HTTP, for reading only."""
