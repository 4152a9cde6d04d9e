"""Code that built the shipped world: VQGAN, DALL·E, CLIP, detector, and the card that measures them."""
