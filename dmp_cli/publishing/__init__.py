"""A model's LoRAs -> a repository on the Hub."""
