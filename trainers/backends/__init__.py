"""Training backends: one protocol, the plain libraries and the accelerated one."""
