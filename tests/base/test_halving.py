"""Work is done again with half as many images at a time, and only if memory has run out."""

import gc
import weakref

import pytest
import torch

from dalle_ppo.base.halving import Halving, OutOfMemory, is_out_of_memory, out_of_memory_line
from dalle_ppo.base.team import Team


def fits(limit: int, tried: list[int], error=torch.OutOfMemoryError):
    def work(size: int) -> int:
        tried.append(size)
        if size > limit:
            raise error("tried to allocate\n2 GiB")
        return size

    return work


def test_the_size_is_halved_until_it_fits_and_is_kept():
    halving, tried = Halving(), []
    with pytest.warns(UserWarning, match=r"while scoring 24 images .*going on with 12.*x\.size") as warned:
        assert halving.run("scoring", "x.size", 24, fits(5, tried)) == 3
    assert tried == [24, 12, 6, 3] and len(warned) == 3
    assert all("\n" not in str(w.message) for w in warned)
    assert halving.run("scoring", "x.size", 24, fits(5, tried)) == 3 and len(tried) == 5
    assert halving.run("scoring", "x.size", 2, fits(5, tried)) == 2
    assert halving.run("drawing", "x.size", 4, fits(5, tried)) == 4


def test_below_one_image_the_setting_is_named():
    with pytest.warns(UserWarning), pytest.raises(OutOfMemory, match=r"one image.*lower x\.size") as caught:
        Halving().run("scoring", "x.size", 2, fits(0, []))
    assert "\n" not in str(caught.value)


def test_images_that_belong_together_are_not_split():
    halving, tried = Halving(), []
    halving.units["computing gradients"] = 2
    with pytest.warns(UserWarning):
        assert halving.run("computing gradients", "x.size", 6, fits(2, tried)) == 2
    assert tried == [6, 2]
    with pytest.raises(OutOfMemory, match=r"computing gradients 2 images at a time .*lower x\.size"):
        halving.run("computing gradients", "x.size", 6, fits(1, tried))


def test_a_failed_attempt_holds_no_memory():
    alive = []

    def work(size: int) -> int:
        gc.disable()
        assert all(reference() is None for reference in alive)
        large = torch.zeros(3)
        alive.append(weakref.ref(large))
        if size > 1:
            raise torch.OutOfMemoryError("no")
        return size

    try:
        with pytest.warns(UserWarning):
            assert Halving().run("scoring", "x.size", 4, work) == 1
    finally:
        gc.enable()
    assert len(alive) == 3


def test_what_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as of_cpu:
        torch.empty(2**55)
    assert is_out_of_memory(of_cpu.value), "torch's own error on a CPU, which has no type of its own"
    assert is_out_of_memory(torch.OutOfMemoryError()) and is_out_of_memory(MemoryError())
    for text in (
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
    ):
        assert is_out_of_memory(RuntimeError(text)), "allocated beside torch"
    assert not is_out_of_memory(RuntimeError("shapes do not fit")) and not is_out_of_memory(ValueError())
    with pytest.raises(RuntimeError, match="invalid for input"):
        Halving().run("scoring", "x.size", 4, lambda size: torch.zeros(2).reshape(3))


def test_what_ran_out_is_said_in_one_line_with_one_piece_of_advice():
    """Also where processes wait for each other, and no fewer images are tried."""
    with pytest.raises(RuntimeError) as together:
        Halving(("scoring",)).run("scoring", "x.size", 8, fits(0, []))
    line = out_of_memory_line(together.value)
    assert line == str(together.value) and "lower x.size, and go on with --resume" in line
    line = out_of_memory_line(torch.OutOfMemoryError("tried to allocate\n2 GiB"))
    assert line.startswith("out of memory: tried to allocate 2 GiB; use smaller batches")


def test_other_processes_get_it_as_such():
    """A reward that does not fit into memory is no bad reward, in whichever process."""

    def fails():
        raise OutOfMemory("out of memory while scoring one image at a time")

    team = Team(0, 2)
    for method in (team.on_first, team.everywhere):
        with pytest.raises(OutOfMemory, match="one image at a time"):
            method(fails)
