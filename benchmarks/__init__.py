"""Speed, measured: `python -m benchmarks NAME` runs one case and prints a line of JSON for each variant."""
