"""The verbs of the `shardline` command that are more than one call in launch/commands.py."""
