"""When: Prefect flows, wiring, command line, demo."""
