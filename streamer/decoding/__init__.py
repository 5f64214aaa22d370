"""Raw messages to events and columns, JSON and Arrow, in bulk; what cannot be used says why."""
