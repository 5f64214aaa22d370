"""What evaluate is made of: panes, a model's record, looks, the author of decisions, their effects, the live view."""
