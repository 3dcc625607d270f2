"""Personal data out, consistent placeholders in, before anything is stored."""
