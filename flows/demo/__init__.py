"""One day, one night and the next day, on real data from installed packages."""
