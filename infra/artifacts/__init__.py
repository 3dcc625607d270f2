"""Adapter folders as immutable, verified artifacts; readable without torch."""
