"""The registry: data sets, adapters, scorecards, rollouts, routes and their history."""
