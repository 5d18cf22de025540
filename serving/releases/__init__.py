"""Releases of a repository, and the rollout from one to another."""
