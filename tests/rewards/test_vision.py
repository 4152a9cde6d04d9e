"""A model that sees, run here: a tiny random LLaVA, batched by the term and one by one by the model."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from dalle_ppo.rewards.vision import load_vision

WORDS = [
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    "<image>",
    "yes",
    "no",
    "how",
    "many",
    "boats",
    "are",
    "user",
    "assistant",
]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] }} {% endfor %}{% endfor %}assistant"
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=["<image>"], **names)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    seeing = CLIPVisionConfig(**SMALL | {"num_hidden_layers": 2}, image_size=16, patch_size=8)
    writing = LlamaConfig(
        **SMALL, vocab_size=len(WORDS), num_key_value_heads=2, bos_token_id=2, eos_token_id=3
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=seeing, text_config=writing, image_token_index=4)
    )
    for parameter in model.parameters():
        parameter.data.mul_(5)  # answers that depend on image and question
    model.save_pretrained(folder)
    return folder


def test_answers_do_not_depend_on_what_is_asked_beside_them(llava):
    images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue", "white")]
    questions = ["how many boats are there", "boats", "are there boats", "yes"]
    options = SimpleNamespace(url=None, model=str(llava), parallel=4, request={"max_tokens": 6})
    answers = load_vision(options, torch.device("cpu"), "question")(images, questions)
    processor = LlavaProcessor.from_pretrained(llava)
    model = LlavaForConditionalGeneration.from_pretrained(llava).eval()
    expected = []
    for image, question in zip(images, questions, strict=True):
        inputs = processor(images=image, text=f"user <image> {question} assistant", return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=6, do_sample=False)[
            0, inputs["input_ids"].shape[1] :
        ]
        expected.append(processor.decode(written, skip_special_tokens=True))
    assert [answer.split() for answer in answers] == [answer.split() for answer in expected]
    assert len(set(answers)) > 1
