"""The embedded engine: one process that serves a base model and many LoRA adapters on a CPU."""
