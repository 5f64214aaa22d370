"""What driftloop costs, measured against real servers: one subject a module, one command for all."""
