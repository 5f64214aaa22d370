"""The label join: records of what is known of a prediction, in Redis, and the signed rows that they change."""
