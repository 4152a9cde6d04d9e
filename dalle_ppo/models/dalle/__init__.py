"""DALL·E mini and Mega: BART, VQGAN, tokenizer, sampler, kernels and weight files."""
