"""The `min_dalle` package's own networks, as the oracle of ours."""

import functools
from types import SimpleNamespace
from unittest.mock import patch

import torch

from dalle_ppo.models.dalle.bart import PAD_TOKEN, BartDecoder, BartEncoder


@functools.cache
def package() -> SimpleNamespace:
    """The package's model files, imported without its switches.

    Importing `min_dalle` turns gradients off and sets the number of threads of the whole process.
    """
    cudnn = torch.backends.cudnn
    before = torch.is_grad_enabled(), torch.get_num_threads(), cudnn.enabled, cudnn.allow_tf32
    try:
        from min_dalle.models import dalle_bart_decoder, dalle_bart_encoder, vqgan_detokenizer
    finally:
        torch.set_grad_enabled(before[0])
        torch.set_num_threads(before[1])
        cudnn.enabled, cudnn.allow_tf32 = before[2:]
    return SimpleNamespace(
        encoder=dalle_bart_encoder, decoder=dalle_bart_decoder, detokenizer=vqgan_detokenizer
    )


def package_encoder(ours: BartEncoder, config) -> torch.nn.Module:
    """The package's text encoder with the weights of ours, loaded name for name."""
    theirs = package().encoder.DalleBartEncoder(
        layer_count=config.encoder_layers,
        embed_count=config.width,
        attention_head_count=config.num_heads,
        text_vocab_count=config.text_vocab_count,
        text_token_count=config.num_text_tokens,
        glu_embed_count=config.glu_width,
        device=str(ours.embed_positions.weight.device),
    )
    theirs.to(ours.embed_positions.weight).load_state_dict(ours.state_dict(), strict=True)
    return theirs


def package_decoder(ours: BartDecoder, config) -> torch.nn.Module:
    """The package's decoder with the weights of ours; its 256 image tokens are a constant of its file."""
    with patch.object(package().decoder, "IMAGE_TOKEN_COUNT", config.num_image_tokens):
        theirs = package().decoder.DalleBartDecoder(
            image_vocab_count=config.image_vocab_count,
            embed_count=config.width,
            attention_head_count=config.num_heads,
            glu_embed_count=config.glu_width,
            layer_count=config.num_layers,
            device=str(ours.embed_positions.weight.device),
        )
    theirs.to(ours.embed_positions.weight).load_state_dict(ours.state_dict(), strict=True)
    return theirs


class PackageLoop:
    """The state of `MinDalle.generate_raw_image_stream`: a caption, n images, one token at a time."""

    def __init__(self, encoder, decoder, caption, unconditional, num_images: int):
        text = torch.stack([unconditional, caption])
        rows = [0] * num_images + [1] * num_images
        self.decoder = decoder
        with torch.no_grad():
            self.encoder_state = encoder(text)
        config = (decoder.layer_count, num_images * 4, len(decoder.token_indices), decoder.embed_count)
        self.arguments = {
            "attention_mask": text[rows].not_equal(PAD_TOKEN)[:, None, None, :],
            "encoder_state": self.encoder_state[rows],
            "attention_state": torch.zeros(config, device=text.device),
        }

    @torch.no_grad()
    def logits(self, previous: torch.Tensor, position: int) -> torch.Tensor:
        """Logits [2, n, V + 1] after the token before `position`: unconditional first, then conditional."""
        index = self.decoder.token_indices[[position]]
        logits, state = self.decoder(prev_tokens=previous[:, None], token_index=index, **self.arguments)
        self.arguments["attention_state"] = state
        return logits[:, -1].unflatten(0, (2, -1))

    @torch.no_grad()
    def sample(self, previous: torch.Tensor, position: int, settings: torch.Tensor) -> torch.Tensor:
        """The package's draw of the token at `position`, int64 [n]."""
        index = self.decoder.token_indices[[position]]
        tokens, state = self.decoder.sample_tokens(
            settings, prev_tokens=previous[:, None], token_index=index, **self.arguments
        )
        self.arguments["attention_state"] = state
        return tokens
