"""What the model will see of an input: text and image files in, token ids, positions and patches out. No tensors."""
