"""The term `caption_match` with a tiny BERT: BERTScore's recall, with a tokenizer that states no length."""

import pytest
import torch
from fake_service import chat, png_in, question_in, service
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from dalle_ppo.build.rewards import build_reward
from dalle_ppo.config.reward import RewardConfig
from dalle_ppo.config.settings import Config
from dalle_ppo.rewards import caption_match, vision

pytest.importorskip("openai")
bert_score = pytest.importorskip("bert_score")

IMAGES = torch.linspace(0, 1, 3)[:, None, None, None].expand(3, 3, 8, 8)
WORDS = ["the", "image", "contains", "a", "red", "boat", "blue", "dog", "nothing", "at", "all"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a random BERT whose tokenizer states no maximum length."""
    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(names, special, strict=True)))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=24, **sizes)
    BertModel(config).eval().save_pretrained(folder)
    return folder


def reward_at(url, bert, **settings):
    term = {
        "name": "caption_match",
        "model": "vlm",
        "url": url,
        "bert": str(bert),
        "bert_layer": 2,
        **settings,
    }
    return build_reward(Config(reward=RewardConfig([term])), None, CPU)


def recall(bert, description, reference) -> float:
    """Recall by its definition: each word of the reference finds its nearest token in the description, where
    BERTScore counts the special tokens too."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()
    with torch.no_grad():
        a, b = (
            torch.nn.functional.normalize(model(**tokenizer(text, return_tensors="pt"))[0][0], dim=-1)
            for text in (description, reference)
        )
    return (b[1:-1] @ a.T).max(dim=1).values.mean().item()


def test_bert_score_alone_fails_without_a_maximum_length(bert):
    """The reason for `load_bert_score`; when this fails, bert-score or transformers has mended it."""
    scorer = bert_score.BERTScorer(model_type=str(bert), num_layers=2, device="cpu")
    assert scorer._tokenizer.model_max_length > 10**20
    with pytest.raises(OverflowError):
        scorer.score(["a red boat"], ["a blue boat"])


def test_the_score_is_the_recall_of_the_caption_in_the_description(bert):
    said = ["a red boat", "the dog", "nothing at all"]
    pngs: dict[str, str] = {}

    def answer(content, number):
        return chat(pngs[png_in(content)])

    from dalle_ppo.rewards.asking import png_text, to_pil

    pngs |= dict(zip(map(png_text, to_pil(IMAGES)), said, strict=True))
    captions = ["a red boat", "a blue dog", "a red boat"]
    with service(answer) as server:
        result = reward_at(server.url, bert)(IMAGES, captions)
    expected = [recall(bert, s, f"The image contains {c}") for s, c in zip(said, captions, strict=True)]
    assert result.total.tolist() == pytest.approx(expected, abs=1e-4)
    assert {question_in(c) for c in server.asked} == {"Answer concisely: what is going on in this image?"}


def test_long_and_empty_descriptions_do_no_harm(bert):
    answers = ["a red boat " * 100, "  ", "a red boat"]
    with service(lambda content, number: chat(answers[number])) as server:
        result = reward_at(server.url, bert, parallel=1, reference="{caption}")(IMAGES, ["a red boat"] * 3)
    first, empty, last = result.total.tolist()
    assert empty == 0 and last == pytest.approx(1, abs=1e-4) and 0 < first < 1.001
    with (
        service(lambda *_: chat("")) as server,
        pytest.raises(ValueError, match="reward caption_match: all 3 descriptions by vlm are empty"),
    ):
        reward_at(server.url, bert)(IMAGES, ["a red boat"] * 3)


def test_what_cannot_be_loaded_is_one_line(bert, tmp_path, monkeypatch):
    for settings, words in (
        ({"bert_layer": None}, "for which BERTScore recommends no layer; set bert_layer"),
        ({"bert_layer": 5}, "Invalid num_layers: num_layers should be between 0 and 2"),
        ({"bert": str(tmp_path)}, "which cannot be loaded"),
        ({"url": None, "model": str(tmp_path)}, "which transformers cannot load"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            reward_at(**({"url": "http://127.0.0.1:9", "bert": bert} | settings))
        assert "\n" not in str(error.value)
    monkeypatch.setattr(vision, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package bert-score.*pip install -e '\.\[vlm\]'"):
        reward_at("http://127.0.0.1:9", bert)


def test_positions_limit_the_length_too(bert):
    assert caption_match.load_bert_score(str(bert), 2, CPU)._tokenizer.model_max_length == 22
