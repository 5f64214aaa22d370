"""Events of all models to counts by stream and pane, in a few passes over arrays."""
