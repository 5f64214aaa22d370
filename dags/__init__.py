"""What Airflow runs: the trigger, the assets, the DAGs, and the plain steps they call."""
