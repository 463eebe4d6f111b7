"""What a run writes about itself: log lines, `metrics.jsonl` (a line a step), `attempts.jsonl` (a line an event)."""
