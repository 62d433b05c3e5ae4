"""`/api/v1` and the records behind it."""
