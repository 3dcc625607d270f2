"""A large model as judge: what it is asked, what its answers mean, how far people agree, what it costs."""
