"""DeepSpeed: the engine, and the adapters to what each ZeRO stage keeps where."""
