"""What `shardline doctor` collects before it judges."""
