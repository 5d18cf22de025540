"""Reading of slides: images too large to decode as a whole."""
