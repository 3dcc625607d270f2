"""Where training runs: a subprocess here, or Ray tasks; one protocol."""
