"""Erasure: a subject's records out of the logs, and out of what was made of them."""
