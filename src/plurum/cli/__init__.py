"""The command line: one thin command per file; heavy imports inside the handlers, so that help answers at once."""
