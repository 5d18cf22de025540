"""`plurum score`: classify an archive with many workers."""
