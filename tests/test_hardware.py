"""What a device can do, from what it says of itself: no GPU is needed to be refused one."""

from types import SimpleNamespace

import pytest
import torch

from embedder import Embedder, EmbedderConfig, EmbedInput, UnsupportedCheckpoint
from embedder.checkpoint import open_checkpoint
from embedder.forward import device, hardware
from embedder.forward.hardware import Card, bfloat16_is_faster, outdated, refusal, too_little
from embedder.forward.weights import scattered
from tests.conftest import CHECKPOINT
from tests.reference import TEXTS, cosine, png, random_checkpoint

GB = 10**9
WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]  # of torch 2.12 for CUDA 13
V100 = Card("Tesla V100-SXM2-16GB", (7, 0), 16 * GB, 15 * GB)
T4 = Card("Tesla T4", (7, 5), 15 * GB, 14 * GB)
L4 = Card("NVIDIA L4", (8, 9), 23 * GB, 22 * GB)
H100 = Card("NVIDIA H100 80GB HBM3", (9, 0), 80 * GB, 79 * GB)
LATER = Card("a later one", (13, 0), 80 * GB, 79 * GB)
SLICE = Card("NVIDIA A100-SXM4-40GB MIG 1g.5gb", (8, 0), 5 * GB, 4 * GB)


@pytest.mark.parametrize("card", [L4, H100, SLICE, LATER])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_cards_since_ampere_are_served(card, dtype):
    assert refusal(card, dtype, WHEEL) is None


def test_a_card_that_torch_has_no_code_for():
    said = refusal(V100, "float32", WHEEL)
    assert "no code for Tesla V100-SXM2-16GB (sm_70, 15.0 GB free), only for sm_75, sm_80" in said
    assert "TORCH_INDEX" in said
    assert "EMBED_DEVICE=cpu" in said
    assert refusal(V100, "float32", ["sm_70"]) is None
    assert refusal(Card("GB200", (10, 3), GB, GB), "bfloat16", ["sm_100a"]) is None
    assert refusal(LATER, "bfloat16", WHEEL[:-1]) is not None  # machine code alone does not run on a later one


def test_a_card_without_bfloat16():
    said = refusal(T4, "bfloat16", WHEEL)
    assert "Tesla T4 (sm_75, 14.0 GB free) has no bfloat16" in said
    assert "EMBED_DTYPE=float32" in said
    assert refusal(T4, "float32", WHEEL) is None


def test_too_little_memory():
    assert too_little(9 * GB, [L4]) is None
    assert too_little(int(18 * GB), [T4, T4]) is None
    one, several, mig = too_little(20 * GB, [T4]), too_little(60 * GB, [L4, L4]), too_little(9 * GB, [SLICE])
    assert "its weights take 20.0 GB, more than Tesla T4 (sm_75, 14.0 GB free) has free" in one
    assert "more than 2 GPUs here, NVIDIA L4 (sm_89, 22.0 GB free), NVIDIA L4 (sm_89, 22.0 GB free), have to" in several
    assert "MIG 1g.5gb (sm_80, 4.0 GB free) has free: a MIG slice is all that this process sees of its GPU" in mig


def test_an_instance_looks_at_its_own_gpu_alone(monkeypatch):
    """A look takes half a gigabyte there, and what is free is another instance's."""
    asked = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name="x", major=9, minor=0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: asked.append(index) or (8 * GB, 80 * GB))
    (card,) = Card.seen("cuda:1")
    assert asked == [1]
    assert "instance all GPUs (instance_group's `kind: KIND_MODEL` in config.pbtxt)" in too_little(9 * GB, [card], 2)
    assert len(Card.seen()) == 2
    assert Card.seen("cuda:2") == []


@pytest.mark.parametrize(
    ("driver", "devices", "built", "said"),
    [
        (12080, 1, "13.0", "the NVIDIA driver here runs CUDA 12.8, and this torch is built for CUDA 13.0"),
        (13000, 1, "13.2", None),  # minor versions of one major one go together
        (12080, 0, "13.0", None),  # CUDA_VISIBLE_DEVICES hides them
        (None, 0, "13.0", None),
        (12080, 1, None, None),  # torch for CPUs
    ],
)
def test_an_outdated_driver(driver, devices, built, said):
    found = outdated(driver, devices, built)
    assert found is None if said is None else said in found and "TORCH_PINS" in found


def settings(**given) -> EmbedderConfig:
    return EmbedderConfig(checkpoint=str(CHECKPOINT), **given)


@pytest.mark.parametrize(
    ("given", "card", "driver", "said"),
    [
        ({}, V100, 13000, "no code for"),
        ({}, T4, 13000, "has no bfloat16"),
        ({"device": "cuda:1"}, H100, 13000, "EMBED_DEVICE=cuda:1: torch sees 1 GPUs here"),
        ({}, None, 12020, "runs CUDA 12.2"),
        ({"device": "cuda"}, None, None, "EMBED_DEVICE=cuda: torch sees 0 GPUs here"),
    ],
)
def test_a_device_is_refused_before_anything_is_loaded(monkeypatch, given, card, driver, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: WHEEL)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(card is not None))
    monkeypatch.setattr(Card, "seen", lambda device: [card][: torch.device(device).index != 1])
    monkeypatch.setattr(device, "driver", lambda: (driver, 0 if driver is None else 1))
    with pytest.raises(UnsupportedCheckpoint, match=said):
        Embedder.load(settings(**given))


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: WHEEL)
    monkeypatch.setattr(Card, "seen", lambda device: [T4, H100][torch.device(device).index or 0 :])
    assert device.usable(settings(device="cuda:1"), "float32") == ("cuda:1", "bfloat16")
    assert device.usable(settings(dtype="float32"), "bfloat16") == ("cuda", "float32")
    assert device.usable(settings(device="cpu"), "float32") == ("cpu", "float32")


XEON = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme avx512f avx512_bf16 amx_bf16 amx_tile\n"
GENOA = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu vme avx512f avx512_bf16\nbugs\t\t: sysret_ss_attrs\n"
MILAN = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu vme avx2 sha_ni\nbugs\t\t: avx512_bf16\n"


def test_which_cpus_are_faster_in_bfloat16():
    assert bfloat16_is_faster(XEON)
    assert bfloat16_is_faster(2 * GENOA)
    assert not bfloat16_is_faster(MILAN)
    assert not bfloat16_is_faster(XEON.replace("amx_bf16 amx_tile", ""))  # as a hypervisor showed it: half the rate
    assert not bfloat16_is_faster("Features : asimd bf16")  # Arm: not measured
    assert not bfloat16_is_faster("")


def test_auto_is_the_weights_own_dtype_on_such_a_cpu(tmp_path, monkeypatch):
    """With the parity that is published for it."""
    folder = random_checkpoint(tmp_path)
    config = folder / "config.json"
    inputs = [*(EmbedInput(text=text) for text in TEXTS), EmbedInput(image=png((244, 244)))]
    exact = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))
    assert exact.info["dtype"] == "float32"
    config.write_text(config.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    assert open_checkpoint(str(folder)).dtype == "bfloat16"
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(hardware, "CPUINFO", cpuinfo)
    for text, dtype in ((MILAN, "float32"), (XEON, "bfloat16")):
        cpuinfo.write_text(text)
        embedder = Embedder.load(EmbedderConfig(checkpoint=str(folder), device="cpu"))
        assert embedder.info["dtype"] == dtype
        for ours, theirs in zip(embedder.embed(inputs), exact.embed(inputs), strict=True):
            assert cosine(ours.vector, theirs.vector) >= (0.999 if dtype == "bfloat16" else 0.99999)
    cpuinfo.unlink()
    assert hardware.automatic_dtype("cpu", "bfloat16") == "float32"


def test_a_checkpoint_that_is_spread_needs_its_first_parts_together():
    layers = {f"language_model.layers.{index}": index // 2 for index in range(4)}
    first = {"visual": 0, "language_model.embed_tokens": 0, "language_model.norm": 1, "language_model.rotary_emb": 1}
    assert scattered({}) is None
    assert scattered({"": 0}) is None
    assert scattered(first | layers) is None
    assert "several GPUs" in scattered(first | layers | {"language_model.embed_tokens": 1})
    assert "several GPUs" in scattered(layers | {"visual.blocks.0": 0, "visual.blocks.1": 1})
    assert "in part" in scattered(first | layers | {"language_model.layers.3": "cpu"})


def test_float32_products_are_not_rounded_to_tf32():
    """transformers 5.17 multiplies rotary angles: in TF32, ten bits, position 1,000 would be off by half a radian."""
    torch.set_float32_matmul_precision("high")
    try:
        Embedder.load(settings(device="cpu"))
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")
