"""What one more member costs, on Plurum and on other servers."""
