"""The worker as a process of the system: its control tables, heartbeat, memory and watchdog."""
