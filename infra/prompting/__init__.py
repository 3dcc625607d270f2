"""One rendering of chat requests for small models, used alike by training, judging and serving."""
