"""Object storage behind one protocol: a local directory or any S3 endpoint."""
