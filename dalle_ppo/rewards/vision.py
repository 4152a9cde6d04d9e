"""Asks a model that sees about images: at an OpenAI-compatible endpoint, or here through transformers."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from PIL import Image

from dalle_ppo.rewards.asking import api_key, in_parallel, png_text, shown
from dalle_ppo.rewards.base import RewardFailure

Ask = Callable[[Sequence[Image.Image], Sequence[str]], list[str]]
"""`(images, a question about each) -> answers`, of equal length."""


def need_package(package: str, term: str, pip_name: str | None = None) -> None:
    """Refuses a term whose package is not installed.

    Raises:
        ValueError: it is not; says what to install.
    """
    if find_spec(package) is None:
        raise ValueError(
            f"reward.terms: {term} needs the package {pip_name or package}, which is not installed; run "
            "pip install -e '.[vlm]'"
        )


def load_vision(options, device: torch.device, term: str) -> Ask:
    """The model that the settings name.

    Args:
        options: settings of a term, a `config.service.VisionSettings`.
        device: where a model that runs here is put.
        term: name of the term, for errors.

    Raises:
        ValueError: a package is missing, or the model cannot be loaded.
    """
    if options.url is None:
        return _local(options, device, term)
    need_package("openai", term)
    return _endpoint(options)


def _endpoint(options) -> Ask:
    import openai

    key = api_key(options.api_key_env)
    client = openai.OpenAI(
        base_url=options.url, api_key=key or "none", timeout=options.timeout, max_retries=options.retries
    )

    def ask_one(pair: tuple[str, str]) -> str:
        png, question = pair
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}},
            {"type": "text", "text": question},
        ]
        messages = [{"role": "user", "content": content}]
        try:
            answer = client.chat.completions.create(
                model=options.model, messages=messages, extra_body=options.request
            )
            return answer.choices[0].message.content or ""
        except openai.OpenAIError as error:
            raise RewardFailure(_explain(error, options, key)) from None
        except (AttributeError, IndexError, TypeError, ValueError):
            raise RewardFailure(
                f"{options.url} did not answer as an OpenAI-compatible endpoint does; its address often ends "
                "with /v1"
            ) from None

    def ask(images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        pairs = zip([png_text(image) for image in images], questions, strict=True)
        return in_parallel(ask_one, pairs, options.parallel)

    return ask


def _explain(error: Exception, options, key: str | None) -> str:
    """One line about an error of the client, without the key."""
    import openai

    times = f"{options.url}, asked {options.retries + 1} times: "
    if isinstance(error, openai.APITimeoutError):
        return f"{times}no answer within {options.timeout:g} s; raise the term's timeout"
    if isinstance(error, openai.APIConnectionError):
        return f"{times}{shown(error.__cause__ or error, key)}; is the server running?"
    status = getattr(error, "status_code", None)
    hint = f"; set {options.api_key_env} to the endpoint's key" if status in (401, 403) else ""
    busy = status is not None and (status in (408, 409, 429) or status >= 500)
    return f"{times if busy else options.url + ': '}{shown(error, key)}{hint}"


def _local(options, device: torch.device, term: str) -> Ask:
    """A model that runs here, greedily."""
    from transformers import pipeline

    try:
        describe = pipeline("image-text-to-text", model=options.model, device=device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ValueError(
            f"reward.terms: model of {term} is {options.model}, which transformers cannot load "
            f"({shown(error)}); name a folder or model for image-text-to-text, or set url"
        ) from None
    # The pipeline pads short questions on the tokenizer's side; padded on the right, they are continued after
    # the padding, and answers would depend on the questions beside them.
    tokenizer = getattr(describe.processor, "tokenizer", describe.tokenizer)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    length = options.request.get("max_tokens", 100)

    def ask(images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        chats = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": image}, {"type": "text", "text": question}],
                }
            ]
            for image, question in zip(images, questions, strict=True)
        ]
        found = describe(
            text=chats,
            batch_size=options.parallel,
            return_full_text=False,
            generate_kwargs={"max_new_tokens": length, "do_sample": False},
        )
        return [one[0]["generated_text"] if isinstance(one, list) else one["generated_text"] for one in found]

    return ask
