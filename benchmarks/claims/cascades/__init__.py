"""Claims about cascades."""
