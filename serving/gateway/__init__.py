"""The OpenAI-compatible front door: who answers a call, and the log of what was answered."""
