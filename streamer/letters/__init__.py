"""Dead letters: what could not be used, why, and how it is sent once more."""
