"""Claims about the pixels of image formats."""
