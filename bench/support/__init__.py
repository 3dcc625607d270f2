"""What the benchmarks share: servers, load, and deployments as processes."""
