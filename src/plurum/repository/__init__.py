"""Files of a model repository beside its models: the list of its files, and recorded responses to probes."""
