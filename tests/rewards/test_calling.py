"""Functions of the user's own: how they are found and called, and everything that they may return."""

import numpy as np
import pytest
import torch

from dalle_ppo.rewards.base import RewardResult, Term
from dalle_ppo.rewards.calling import import_function
from dalle_ppo.rewards.combine import CombinedReward

IMAGES, CAPTIONS = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), ["a", "b", "c"]
KNOWN = [{"tag": tag, "id": tag.lower()} for tag in ("NSFW", "UNSURE", "UNLIKELY")]
VALUES = [1.0, -2.0, 0.5]


def result_of(function, images=IMAGES, captions=CAPTIONS) -> RewardResult:
    return CombinedReward([Term("own", function)])(images, captions, KNOWN[: len(captions)])


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RETURNED = {
    **{f"tensor {dtype}": torch.tensor(VALUES, dtype=dtype) for dtype in FLOATS},
    "tensor with a gradient": torch.tensor(VALUES, requires_grad=True),
    **{
        f"array {kind}": np.array(VALUES, dtype=kind)
        for kind in ("float16", "float32", "float64", "longdouble")
    },
    "array backwards": np.array(VALUES[::-1])[::-1],
    "list": VALUES,
    "tuple": tuple(VALUES),
    "list of NumPy numbers": list(np.array(VALUES)),
    "list of tensors": [torch.tensor(value) for value in VALUES],
    "pair with nothing": (VALUES, None),
    "pair with a dict": (np.array(VALUES), {}),
    "pair with words": (torch.tensor(VALUES), "why"),
    "list as a pair": (VALUES, [{}, {}, {}]),
    "RewardResult": RewardResult(torch.tensor(VALUES)),
    "RewardResult of an array": RewardResult(np.array(VALUES)),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_every_kind_of_numbers_is_read(kind):
    result = result_of(lambda images, captions: RETURNED[kind])
    assert result.total.tolist() == VALUES and result.total.dtype == torch.float32
    assert not result.total.requires_grad and result.total.device == IMAGES.device


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_rewards_may_count(dtype):
    assert result_of(lambda images, captions: torch.tensor([1, 0, 1], dtype=dtype)).total.tolist() == [
        1,
        0,
        1,
    ]
    assert result_of(lambda images, captions: [len(c) for c in captions]).total.tolist() == [1, 1, 1]


def test_two_numbers_are_two_images_and_no_pair():
    two = dict(images=IMAGES[:2], captions=CAPTIONS[:2])
    assert result_of(lambda images, captions: (0.5, 2), **two).total.tolist() == [0.5, 2]
    assert result_of(lambda images, captions: (torch.tensor(1.0), np.float64(2)), **two).total.tolist() == [
        1,
        2,
    ]
    assert result_of(lambda images, captions: ([0.5, 2], {}), **two).total.tolist() == [0.5, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_numbers_of_another_device_are_brought_to_the_images():
    result = result_of(lambda images, captions: torch.tensor(VALUES, device="cuda", dtype=torch.float16))
    assert result.total.device == IMAGES.device and result.total.tolist() == VALUES
    listed = result_of(lambda images, captions: list(torch.tensor(VALUES, device="cuda")))
    assert listed.total.tolist() == VALUES


def test_extras_with_one_number_per_image_become_parts():
    extras = {
        "size": np.array([1, 2, 3]),
        "bright": torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64),
        "answers": ["cat", "dog", "pig"],
        "one": 3.0,
        "all": np.ones((3, 2)),
        "unknown": [1.0, float("nan"), 2.0],
    }
    parts = result_of(lambda images, captions: (VALUES, extras)).parts
    assert {name: part.tolist() for name, part in parts.items()} == {
        "own": VALUES,
        "own/size": [1, 2, 3],
        "own/bright": [0.5, 0.25, 0.0],
    }


@pytest.mark.parametrize(
    "returned, words",
    [
        (torch.tensor([1.0, float("nan"), 2.0]), "1 of 3 values not finite"),
        ([1.0, float("inf"), -float("inf")], "2 of 3 values not finite"),
        (np.array([1e300, 0, 0]), "1 of 3 values not finite"),
        (torch.ones(2), r"total of shape \(2,\)"),
        (torch.ones(3, 1), r"total of shape \(3, 1\)"),
        ([[1.0], [2.0], [3.0]], r"total of shape \(3, 1\)"),
        (torch.tensor(1.0), r"total of shape \(\)"),
        (2.5, r"total of shape \(\)"),
        (None, "returned NoneType; it must return a tensor, NumPy array"),
        (["good", "bad", "good"], "returned list; it must return"),
        ([1.0, [2.0, 3.0], 1.0], "returned list; it must return"),
        (torch.ones(3, dtype=torch.complex64), "returned Tensor; it must return"),
        ({"score": VALUES}, "returned dict; it must return"),
        (RewardResult(torch.ones(3), {"odd": torch.ones(4)}), r"odd of shape \(4,\)"),
        (RewardResult(torch.tensor([0.0, float("nan"), 0.0]), {"total": torch.ones(3)}), "total with 1 of 3"),
        (RewardResult(torch.ones(3), {"odd": "words"}), "part odd as str"),
        (RewardResult(torch.ones(3), {"odd": torch.tensor([0.0, float("nan"), 0.0])}), "odd with 1 of 3"),
    ],
)
def test_anything_else_is_refused_by_name_in_one_line(returned, words):
    with pytest.raises(ValueError, match=f"reward own .*{words}") as caught:
        result_of(lambda images, captions: returned)
    assert "\n" not in str(caught.value)


def test_what_a_function_raises_is_named_with_its_line():
    def broken(images, captions):
        return captions[99]

    with pytest.raises(
        ValueError, match=r"reward own raised IndexError: .*test_calling\.py, line \d+"
    ) as caught:
        result_of(broken)
    assert "\n" not in str(caught.value)


def of_tags(known) -> list[float]:
    return [float(one["tag"] == "NSFW" and one["id"] == "nsfw") for one in known]


class Callable:
    def __call__(self, images, captions, metadata):
        return of_tags(metadata)


@pytest.mark.parametrize(
    "function",
    [
        lambda images, captions, metadata: of_tags(metadata),
        lambda images, prompts, known: of_tags(known),
        lambda images, captions, metadata=None: of_tags(metadata),
        lambda images, captions, metadata, scale=1.0: of_tags(metadata),
        Callable(),
    ],
)
def test_metadata_goes_to_those_who_take_it(function):
    assert result_of(function).total.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    "function",
    [
        lambda images, captions: VALUES,
        lambda images, captions, scale=1.0: [scale * value for value in VALUES],
        lambda *arguments: VALUES if len(arguments) == 2 else None,
        lambda images, captions, **more: VALUES if not more else None,
    ],
)
def test_those_who_do_not_get_none(function):
    assert result_of(function).total.tolist() == VALUES


@pytest.mark.parametrize(
    "function", [lambda images: VALUES, lambda a, b, c, d: VALUES, lambda a, b, *, c: VALUES]
)
def test_a_function_of_something_else_is_refused_before_it_is_called(function):
    with pytest.raises(ValueError, match=r"reward own takes .* must take \(images, captions\) or"):
        CombinedReward([Term("own", function)])


def test_functions_are_found_by_name(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_mine.py").write_text(
        "def f(images, captions):\n    return 'found'\n"
        "def made():\n    return f\n"
        "def nothing():\n    return 3\n"
        "def fails():\n    raise OSError('no\\nfile')\n"
        "NUMBER = 3\n"
    )
    (tmp_path / "rewards_that_fail.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_function("rewards_of_mine:f")(None, None) == "found"
    assert import_function("rewards_of_mine:made")(None, None) == "found", "as those of ddpo-pytorch are"
    for call, words in {
        ":f": "my_module:my_function",
        "rewards_of_mine:": "my_module:my_function",
        "rewards_of_mine:g": "no function g",
        "rewards_of_mine:NUMBER": "no function NUMBER",
        "rewards_of_mine:nothing": "takes no images and returned int",
        "rewards_of_mine:fails": "raised OSError: no file",
        "rewards_of_nobody:f": "rewards_of_nobody.* cannot be imported",
        "rewards_that_fail:f": "rewards_that_fail.* raised ZeroDivisionError while it was imported",
    }.items():
        with pytest.raises(ValueError, match=words) as caught:
            import_function(call)
        assert "\n" not in str(caught.value)
