"""The history of the tables' form, one file per change in ``versions/``."""
