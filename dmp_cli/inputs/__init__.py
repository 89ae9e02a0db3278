"""Files of pictures and clips -> numbers. No tasks, no tensors."""
