"""The call record: the one declared shape of what the gateway logs."""
