"""A copy of the lineage in MLflow, for those who look there. Nothing is ever decided by it."""
