"""Kafka for everybody else here: clients and their rights, topics, partitions, offsets, and a place in a group."""
