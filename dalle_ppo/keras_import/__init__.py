"""Reads Keras models without Keras or TensorFlow, into the layers of `dalle_ppo.rewards`."""
