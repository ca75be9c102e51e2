"""How work is done: devices, memory, locks, signals, processes, clusters."""
