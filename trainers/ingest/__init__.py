"""From log objects to Parquet: each object exactly once, every bad line accounted for."""

from trainers.ingest.ingest import IngestReport, ingest, totals

__all__ = ["IngestReport", "ingest", "totals"]
