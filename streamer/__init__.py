"""What moves: Kafka, Redis, HTTP, the daemon, the SDK and the command line."""
