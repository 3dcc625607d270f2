"""What we stand on: settings, records, storage, database, anonymizer, notifications."""
