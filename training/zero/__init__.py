"""DeepSpeed: the engine, and an adapter for each family of ZeRO stages to where it keeps a rank's partitions."""
