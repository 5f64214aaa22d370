"""The same counts kept by other programs, each written the way its own documentation shows, for comparison."""
