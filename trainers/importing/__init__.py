"""Taking in logs that other systems wrote: anonymized, exactly once, into our own log."""
