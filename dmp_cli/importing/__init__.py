"""Files of others -> LoRAs in the store."""
