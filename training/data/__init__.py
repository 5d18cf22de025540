"""Read, check, split and store labelled images."""
