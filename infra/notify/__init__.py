"""Messages to people and systems: what, why, evidence, link, how to undo."""
