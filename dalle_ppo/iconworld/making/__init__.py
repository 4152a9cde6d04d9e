"""What built the shipped world: VQGAN, DALL·E, CLIP, detector, judge, and the card that measures them."""
