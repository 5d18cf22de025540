"""`plurum search`: search for the settings of a training."""
