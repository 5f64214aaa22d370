"""What the SDK is made of: checked arguments, batches, a bounded queue, a spool, and the transports behind it."""
