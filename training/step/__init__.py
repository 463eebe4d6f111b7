"""What one step computes: a batch of packed rows, attention by documents, and the loss."""
