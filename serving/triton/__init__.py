"""One Triton server: settings, processes and files from start to stop."""
