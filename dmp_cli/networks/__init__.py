"""What is done with the networks of diffusers and transformers so that they are ours."""
