"""The command line: one command per file, with heavy imports inside the handlers so that `--help` is fast."""
