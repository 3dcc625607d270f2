"""What is kept, what may go, and how it goes without ever touching what a route or a rollout names."""
