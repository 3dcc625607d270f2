"""Bringing an adapter in safely: assignment, state machine, controller."""
