"""A device that is not there, and what segpipe does on it.

These tests run in processes of their own: torch lets a program register one such device, once, and never takes it back.
`tests/e2e/test_simulated_device.py` starts them in the ordinary suite; by hand: `pytest tests/simulated`.
Where a real GPU is, they run on that one, without what only a simulation can do.
"""
