"""Model repositories: their parts, their configuration and the checks before they are published."""
