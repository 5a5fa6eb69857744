"""Pure functions of records: no files, no simulator."""
