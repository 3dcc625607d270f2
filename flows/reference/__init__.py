"""The reference pages, made of the code: ``python -m flows.reference`` writes them."""
