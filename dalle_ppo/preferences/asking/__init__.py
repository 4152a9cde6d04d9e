"""A model that ranks: asks an OpenAI-compatible endpoint with image input what people would be asked."""
