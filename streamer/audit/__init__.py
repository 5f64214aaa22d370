"""The truth counted again from the log by simpler means, and the join store made anew from it."""
