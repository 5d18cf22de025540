"""Settings of the stages, checked once; the fields are also the options of the commands."""
