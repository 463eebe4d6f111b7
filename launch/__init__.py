"""The front door: the shardline command and the launch scripts."""
