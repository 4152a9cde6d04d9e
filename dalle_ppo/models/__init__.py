"""The networks: text-to-image transformer, critic, image tokenizer, text tokenizer and their weights."""
