"""The model: what a stage computes, from tensors to sampled tokens."""
