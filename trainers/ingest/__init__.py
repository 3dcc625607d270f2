"""From log objects to Parquet: each object exactly once, every bad line accounted for."""
