"""Compare a student with its teacher, and with the same network trained on labels alone."""
