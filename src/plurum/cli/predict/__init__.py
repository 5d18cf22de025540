"""`plurum predict`: predictions for files, folders, tables and slides."""
