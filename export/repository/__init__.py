"""Build Triton model repositories: graphs, configurations, and checks before publication."""
