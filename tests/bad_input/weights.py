"""Weights, detectors, CLIPs and checkpoints."""

import functools
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bad_input.case import Case, cases, raw_safetensors, raw_zip, text_file
from safetensors.torch import save_file

from dalle_ppo.models.clip import load_clip
from dalle_ppo.models.clip_config import read_clip_config
from dalle_ppo.models.clip_files import read_weight_file
from dalle_ppo.models.dalle.tokenizer import TextTokenizer
from dalle_ppo.models.dalle.weight_files import find_weight_files
from dalle_ppo.models.dalle.weights import load_weights
from dalle_ppo.models.heads.keras.convert import convert
from dalle_ppo.models.heads.nsfw import FORMAT, load_detector, load_head
from dalle_ppo.runs.checkpoints import load_checkpoint, save_checkpoint
from dalle_ppo.training.detector.data import read_array

EMPTY: dict = {}
FLOATS = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
DEEP_JSON = b"[" * 50_000 + b"]" * 50_000
INFO = {"clip_model": "ViT-B-32", "clip_pretrained": "openai", "dimension": 4, "output": "probability"}
DENSE = [{"type": "dense"}, {"type": "activation", "name": "sigmoid"}]


def linear(path: Path) -> object:
    with torch.device("meta"):
        network = torch.nn.Linear(4, 4)
    return load_weights(network, path)


HEADERS = {
    "a header beyond the file": (EMPTY, b"", 1 << 40),
    "a header of no length": (b"", b"", 0),
    "a header that is a list": ([1], b"", None),
    "a header that is not JSON": (b"{weights", b"", None),
    "a header nested deeply": (DEEP_JSON, b"", None),
    "a tensor beyond the file": (
        {"weight": FLOATS | {"data_offsets": [0, 1 << 40], "shape": [1 << 38]}},
        b"",
        None,
    ),
    "a shape that overflows": ({"weight": FLOATS | {"shape": [1 << 33, 1 << 33]}}, b"\0" * 64, None),
    "a negative shape": ({"weight": FLOATS | {"shape": [-4, -4]}}, b"\0" * 64, None),
    "offsets in reverse": ({"weight": FLOATS | {"data_offsets": [64, 0]}}, b"\0" * 64, None),
    "tensors that overlap": ({"weight": FLOATS, "bias": FLOATS}, b"\0" * 64, None),
    "an unknown dtype": ({"weight": FLOATS | {"dtype": "F99"}}, b"\0" * 64, None),
    "other tensors": ({"other": FLOATS}, b"\0" * 64, None),
    "no tensors": (EMPTY, b"", None),
    "whole numbers": ({"weight": FLOATS | {"dtype": "I32"}}, b"\0" * 64, None),
}


def safetensors_header(header: object, data: bytes, length: int | None, folder: Path) -> object:
    return linear(raw_safetensors(folder / "w.safetensors", header, data, length))


def torch_file(content: object, folder: Path) -> object:
    torch.save(content, folder / "w.pt")
    return linear(folder / "w.pt")


def file_of(name: str, content: str | bytes, use: Callable[[Path], object], folder: Path) -> object:
    return use(text_file(folder / name, content))


def compressed_torch_file(folder: Path) -> object:
    return linear(raw_zip(folder / "w.pt", {"w/data.pkl": b"\0" * (1 << 20)}, compressed=True))


def pickle_with_code(folder: Path) -> object:
    torch.save(print, folder / "w.pt")
    return linear(folder / "w.pt")


WEIGHTS = [
    *(
        (name, functools.partial(safetensors_header, *parts), ("w.safetensors",))
        for name, parts in HEADERS.items()
    ),
    ("nothing there", lambda folder: linear(folder / "w.pt"), ("w.pt", "does not exist")),
    ("an error page", functools.partial(file_of, "w.pt", "<html>", linear), ("w.pt", "error page")),
    ("an empty file", functools.partial(file_of, "w.pt", "", linear), ("w.pt", "cut short")),
    ("a bare pickle", functools.partial(file_of, "w.pt", b"\x80\x04N.", linear), ("w.pt", "refused")),
    ("a zip that is cut", functools.partial(file_of, "w.pt", b"PK\x03\x04" + b"\0" * 40, linear), ("w.pt",)),
    ("a compressed zip", compressed_torch_file, ("w.pt", "compressed")),
    ("a function", pickle_with_code, ("w.pt", "refused", "could run code")),
    ("a number", functools.partial(torch_file, 3), ("w.pt", "dictionary of tensors")),
    ("a list", functools.partial(torch_file, [torch.ones(2)]), ("w.pt", "dictionary of tensors")),
    (
        "numbers as names",
        functools.partial(torch_file, {1: torch.ones(2)}),
        ("w.pt", "dictionary of tensors"),
    ),
    (
        "another shape",
        functools.partial(torch_file, {"weight": torch.ones(4, 5), "bias": torch.ones(4)}),
        ("w.pt", "misshapen weight [4, 5]"),
    ),
]


def half_a_model(folder: Path) -> object:
    text_file(folder / "encoder.pt", "x")
    return find_weight_files(folder)


def vocabulary(vocab: str | bytes, merges: str, folder: Path) -> object:
    return TextTokenizer.from_files(
        text_file(folder / "vocab.json", vocab), text_file(folder / "merges.txt", merges)
    )


WEIGHTS += [
    ("half a model", half_a_model, ("lacks", "decoder.pt")),
    ("a vocabulary that is a list", functools.partial(vocabulary, "[]", "#\n"), ("vocab.json",)),
    ("a vocabulary nested deeply", functools.partial(vocabulary, DEEP_JSON, "#\n"), ("vocab.json",)),
    ("a vocabulary of texts", functools.partial(vocabulary, '{"a": "b"}', "#\n"), ("vocab.json",)),
    ("a vocabulary that is not UTF-8", functools.partial(vocabulary, b"\xff", "#\n"), ("vocab.json",)),
]


def head(tensors: dict, layers: object = DENSE, info: object = INFO, use=load_detector, **more) -> object:
    def run(folder: Path) -> object:
        described = {"layers": layers, "info": info}
        texts = {
            name: v if isinstance(v, str) else json.dumps(v) for name, v in described.items() if v is not None
        }
        save_file(tensors, folder / "h.safetensors", {"format": FORMAT} | texts | more)
        return use(folder / "h.safetensors")

    return run


KERNEL = {"0.kernel": torch.zeros(4, 1)}
TABLE = {
    "0.columns": torch.tensor([0]),
    **{f"0.{name}": torch.zeros(1, 2, dtype=torch.int32) for name in ("lower", "upper")},
    "0.index": torch.zeros(1, 2),
}
CATEGORIES = [{"type": "category_encoding"}]

HEADS = [
    (
        "nothing there",
        lambda folder: load_detector(folder / "h.safetensors"),
        ("h.safetensors", "no such file"),
    ),
    (
        "not safetensors",
        functools.partial(file_of, "h.safetensors", "text", load_detector),
        ("not a safetensors",),
    ),
    (
        "another format",
        lambda folder: load_detector(
            raw_safetensors(folder / "h.safetensors", {"weight": FLOATS}, b"\0" * 64)
        ),
        ("h.safetensors", "format is missing"),
    ),
    ("no layers", head(KERNEL, layers=None), ("h.safetensors", "metadata")),
    ("layers that are not JSON", head(KERNEL, layers="[{"), ("h.safetensors", "metadata")),
    ("layers nested deeply", head(KERNEL, layers=DEEP_JSON.decode()), ("h.safetensors", "metadata")),
    ("layers that are texts", head(KERNEL, layers=["dense"]), ("h.safetensors", "metadata")),
    ("layers without a type", head(KERNEL, layers=[{}]), ("h.safetensors", "no type")),
    ("a layer nobody knows", head(KERNEL, layers=[{"type": "exec"}]), ("h.safetensors", "exec")),
    ("an option nobody knows", head(KERNEL, layers=[{"type": "dense", "run": 1}]), ("h.safetensors", "run")),
    ("an activation nobody knows", head({}, layers=[{"type": "activation", "name": "system"}]), ("system",)),
    ("ten thousand layers", head(KERNEL, layers=DENSE * 5000), ("h.safetensors", "10000 layers")),
    ("no info", head(KERNEL, info=None), ("h.safetensors", "metadata")),
    ("info that is a list", head(KERNEL, info=[]), ("h.safetensors", "metadata")),
    ("info with more", head(KERNEL, info=INFO | {"x": 1}), ("h.safetensors", "metadata")),
    (
        "a width that is text",
        head(KERNEL, info=INFO | {"dimension": "4"}),
        ("h.safetensors", "dimension is 4"),
    ),
    (
        "a width that is huge",
        head(KERNEL, info=INFO | {"dimension": 1 << 40}),
        ("dimension is 1099511627776",),
    ),
    (
        "a width that does not fit",
        head(KERNEL, info=INFO | {"dimension": 5}),
        ("h.safetensors", "fit together"),
    ),
    ("a tensor too many", head(KERNEL | {"7.x": torch.zeros(1)}), ("h.safetensors", "7.x")),
    ("an empty kernel", head({"0.kernel": torch.zeros(4, 0)}), ("h.safetensors", "empty")),
    ("a kernel of one dimension", head({"0.kernel": torch.zeros(4)}), ("h.safetensors",)),
    ("a score", head(KERNEL, info=INFO | {"output": "score"}), ("h.safetensors", "score")),
    (
        "tables that are missing",
        head({"0.columns": torch.tensor([0])}, CATEGORIES),
        ("lacks columns or tables",),
    ),
    (
        "tables of different sizes",
        head(TABLE | {"0.index": torch.zeros(1, 3)}, CATEGORIES),
        ("h.safetensors", "differ in shape"),
    ),
    (
        "a column outside the embedding",
        head(TABLE | {"0.columns": torch.tensor([9])}, CATEGORIES),
        ("h.safetensors", "not among the 4"),
    ),
    (
        "a table that is huge",
        head(
            {
                n: t.expand(1, 4_000_001).contiguous() if n != "0.columns" else t
                for n, t in {k: (v[:, :1] if v.ndim == 2 else v) for k, v in TABLE.items()}.items()
            },
            CATEGORIES,
        ),
        ("h.safetensors", "at most 4000000"),
    ),
    ("old probes", head(KERNEL | {"probes": torch.zeros(8, 4)}, probes="v0"), ("h.safetensors", "probes")),
    ("pth that is not", functools.partial(file_of, "h.pth", "text", load_head), ("h.pth", "state dict")),
    ("npy that is not", functools.partial(file_of, "h.npy", "text", load_head), ("h.npy", "numpy array")),
    (
        "npy of objects",
        lambda folder: saved_array(folder, np.array([[None] * 512] * 2)),
        ("h.npy", "numpy array"),
    ),
    ("npy of texts", lambda folder: saved_array(folder, np.full((2, 512), "a")), ("h.npy", "floating-point")),
    (
        "npy of another shape",
        lambda folder: saved_array(folder, np.zeros((3, 512))),
        ("h.npy", "shape (3, 512)"),
    ),
    ("npy that claims too much", lambda folder: claimed_array(folder, load_head), ("h.npy",)),
    ("embeddings that claim too much", lambda folder: claimed_array(folder, read_array), ("h.npy",)),
]


def saved_array(folder: Path, array: np.ndarray) -> object:
    np.save(folder / "h.npy", array, allow_pickle=True)
    return load_head(folder / "h.npy")


def claimed_array(folder: Path, use: Callable[[Path], object]) -> object:
    """A header that promises 80 GB, and no numbers."""
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000,), }".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()
    return use(text_file(folder / "h.npy", content))


def keras_zip(entries: dict[str, bytes], folder: Path, compressed: bool = False) -> object:
    return convert(raw_zip(folder / "k.zip", entries, compressed), folder / "out.safetensors")


KERAS_PARTS = {"config.json": b"{}", "metadata.json": b"{}", "model.weights.h5": b""}
KERAS = [
    ("nothing there", lambda folder: convert(folder / "k.zip", folder / "out"), ("k.zip", "no such file")),
    ("text", functools.partial(file_of, "k.h5", "text", lambda p: convert(p, p.with_name("out"))), ("k.h5",)),
    (
        "an HDF5 magic",
        functools.partial(file_of, "k.h5", b"\x89HDF\r\n\x1a\n", lambda p: convert(p, p.with_name("out"))),
        ("k.h5", "HDF5"),
    ),
    ("a folder without a graph", lambda folder: convert(folder, folder / "out"), ("saved_model.pb",)),
    ("an entry above the folder", functools.partial(keras_zip, {"../evil": b"x"}), ("'../evil'", "refused")),
    ("an absolute entry", functools.partial(keras_zip, {"/evil": b"x"}), ("'/evil'", "refused")),
    ("an entry with backslashes", functools.partial(keras_zip, {"..\\evil": b"x"}), ("evil", "refused")),
    ("an entry on a drive", functools.partial(keras_zip, {"C:evil": b"x"}), ("'C:evil'", "refused")),
    ("no model", functools.partial(keras_zip, {"a": b"x"}), ("k.zip", "0 SavedModels")),
    (
        "two models",
        functools.partial(keras_zip, {"a/saved_model.pb": b"", "b/saved_model.pb": b""}),
        ("2 Saved",),
    ),
    ("an empty graph", functools.partial(keras_zip, {"saved_model.pb": b""}), ("0 graphs",)),
    (
        "a graph of noise",
        functools.partial(keras_zip, {"saved_model.pb": b"\x12\xff\xff"}),
        ("k.zip", "damaged"),
    ),
    ("an empty configuration", functools.partial(keras_zip, KERAS_PARTS), ("k.zip",)),
    (
        "a configuration nested deeply",
        functools.partial(keras_zip, KERAS_PARTS | {"config.json": DEEP_JSON}),
        ("k.zip",),
    ),
    (
        "zeros that unpack to too much",
        lambda folder: keras_zip(KERAS_PARTS | {"model.weights.h5": bytes(65 << 20)}, folder, True),
        ("k.zip", "unpacks to"),
    ),
    (
        "a saved model that unpacks to too much",
        lambda folder: keras_zip({"saved_model.pb": bytes(65 << 20)}, folder, True),
        ("k.zip", "unpacks to"),
    ),
]


def clip_folder(config: object, use: Callable[[Path], object] = read_clip_config) -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        text = config if isinstance(config, str | bytes) else json.dumps({"model_cfg": config})
        return use(text_file(folder / "open_clip_config.json", text))

    return run


def clip_at(folder: Path) -> object:
    return load_clip(str(folder), None)


FILE = "open_clip_config.json"
CLIPS = [
    ("an empty folder", clip_at, (FILE, "missing")),
    ("a folder and weights", lambda folder: load_clip(str(folder), "openai"), ("clip.pretrained", "leave")),
    ("a name nobody knows", lambda folder: load_clip("ViT-Q-1", "openai"), ("clip.model", "ViT-Q-1")),
    ("no tag", lambda folder: load_clip("ViT-B-32", None), ("clip.pretrained",)),
    ("text as configuration", clip_folder("text"), (FILE,)),
    ("a list as configuration", clip_folder("[]"), (FILE,)),
    ("a configuration nested deeply", clip_folder(DEEP_JSON), (FILE,)),
    ("a configuration without a model", clip_folder("{}"), (FILE, "model_cfg")),
    ("sections that are texts", clip_folder({"text_cfg": "x"}), (FILE,)),
    (
        "code for the tokenizer",
        clip_folder({"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}),
        (FILE, "trust_remote_code", "refused"),
    ),
    (
        "another file for the tokenizer",
        clip_folder({"text_cfg": {"tokenizer_kwargs": {"bpe_path": "/x"}}}),
        (FILE, "bpe_path", "refused"),
    ),
    ("a path as the text model", clip_folder({"text_cfg": {"hf_model_name": "../evil"}}), (FILE, "../evil")),
    (
        "an address as the image model",
        clip_folder({"vision_cfg": {"timm_model_name": "hf-hub:a/b"}}),
        ("hf-hub:a/b",),
    ),
    ("a model of absurd size", clip_folder({"vision_cfg": {"width": 1 << 40}}), (FILE, "width")),
    ("a model of NaN size", clip_folder('{"model_cfg": {"embed_dim": NaN}}'), (FILE, "embed_dim")),
    (
        "text as transformers' configuration",
        lambda folder: (text_file(folder / "config.json", "text"), clip_at(folder)),
        ("config.json", "not JSON"),
    ),
    (
        "another model of transformers",
        lambda folder: (text_file(folder / "config.json", '{"model_type": "bert"}'), clip_at(folder)),
        ("model_type 'bert'",),
    ),
    (
        "transformers' configuration nested deeply",
        lambda folder: (text_file(folder / "config.json", DEEP_JSON), clip_at(folder)),
        ("config.json",),
    ),
    ("weights that are text", functools.partial(file_of, "w.pt", "text", read_weight_file), ("w.pt",)),
    (
        "weights that are cut",
        functools.partial(file_of, "w.safetensors", "text", read_weight_file),
        ("w.safetensors",),
    ),
    (
        "an archive of nothing",
        lambda folder: read_weight_file(raw_zip(folder / "w.pt", {"w/constants.pkl": b""})),
        ("w.pt", "TorchScript"),
    ),
    (
        "an archive that names code",
        lambda folder: read_weight_file(
            raw_zip(folder / "w.pt", {"w/data.pkl": b"cos\ngetcwd\n.", "w/constants.pkl": b""})
        ),
        ("w.pt", "os.getcwd"),
    ),
]


def checkpoint(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        saved = save_checkpoint(folder, 1, {"policy": {"weight": torch.ones(2)}}, {"a": 1}, 1)
        change(saved)
        return load_checkpoint(saved)

    return run


def signed(changes: dict) -> Callable[[Path], object]:
    """Changes the manifest and its hash, as whoever made the file could."""

    def change(saved: Path) -> None:
        from dalle_ppo.runs.checkpoints import _content_hash

        content = json.loads((saved / "state.json").read_text())
        content = {k: v for k, v in content.items() if k != "sha256"} | changes
        (saved / "state.json").write_text(json.dumps(content | {"sha256": _content_hash(content)}))

    return change


def flipped(saved: Path) -> None:
    content = bytearray((saved / "policy.safetensors").read_bytes())
    content[-1] ^= 1
    (saved / "policy.safetensors").write_bytes(content)


def state_is(text: str | bytes) -> Callable[[Path], object]:
    return checkpoint(lambda saved: text_file(saved / "state.json", text))


CHECKPOINTS = [
    ("no state", checkpoint(lambda saved: (saved / "state.json").unlink()), ("state.json", "missing")),
    ("a state that is cut", state_is('{"format": 2'), ("state.json", "damaged")),
    ("a state that is a list", state_is("[]"), ("state.json", "damaged")),
    ("a state nested deeply", state_is(DEEP_JSON), ("state.json", "damaged")),
    ("a state that is not UTF-8", state_is(b"\xff"), ("state.json", "damaged")),
    (
        "a state that was changed",
        state_is('{"format": 2, "files": {}, "sha256": ""}'),
        ("state.json", "use an earlier"),
    ),
    ("a flipped bit", checkpoint(flipped), ("policy.safetensors", "hash")),
    (
        "a file that is cut",
        checkpoint(lambda saved: text_file(saved / "policy.safetensors", "x")),
        ("1 bytes",),
    ),
    ("a file that is gone", checkpoint(lambda saved: (saved / "policy.safetensors").unlink()), ("missing",)),
    ("another format", checkpoint(signed({"format": 99})), ("state.json", "99")),
    ("files as a list", checkpoint(signed({"files": ["policy.safetensors"]})), ("state.json", "damaged")),
    (
        "a file outside",
        checkpoint(signed({"files": {"../../x": {"bytes": 1, "sha256": ""}}})),
        ("../../x", "refused"),
    ),
    (
        "a file without a length",
        checkpoint(signed({"files": {"policy.safetensors": {}}})),
        ("state.json", "damaged"),
    ),
    ("no iteration", checkpoint(signed({"iteration": "one"})), ("state.json", "iteration")),
]

CASES: list[Case] = [
    *cases("weights", WEIGHTS),
    *cases("head", HEADS),
    *cases("keras", KERAS),
    *cases("clip", CLIPS),
    *cases("checkpoint", CHECKPOINTS),
]
