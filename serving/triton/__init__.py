"""One Triton server: its settings, processes and files, from start to end."""
