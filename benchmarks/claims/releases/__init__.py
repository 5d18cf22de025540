"""Changes of releases under load."""
