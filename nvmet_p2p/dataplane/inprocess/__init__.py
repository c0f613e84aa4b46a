"""The in-process data plane: I/O queues served by Python itself. Slow, complete, and the oracle of the C helper."""
