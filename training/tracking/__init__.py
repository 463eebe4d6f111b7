"""Send what a run writes about itself to trackers: TensorBoard, W&B, MLflow, trackio, Comet."""
