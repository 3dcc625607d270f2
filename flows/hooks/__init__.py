"""Signed webhooks in: a retraining or a rollback asked for from outside."""
