"""Train the members."""
