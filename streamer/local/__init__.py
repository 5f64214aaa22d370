"""The real things as child processes, from packages alone: Kafka, Valkey, PostgreSQL, MLflow, Airflow, the worker."""
