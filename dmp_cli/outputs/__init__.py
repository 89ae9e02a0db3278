"""Maps -> files: data, pictures, pages, movies. No tensors."""
