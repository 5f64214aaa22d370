"""The plain functions the DAGs call: no Airflow in here."""
