"""The watchdog, a process beside the ranks: finds that they hang, names the one they wait for, and ends them."""
