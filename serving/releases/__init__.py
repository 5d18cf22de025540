"""Releases of a repository, and rollouts from one release to another."""
