"""`plurum add`."""
