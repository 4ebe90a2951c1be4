"""The embedder's settings: from the environment, unknown names and bad values refused by name."""

import pytest

from embedder import EmbedderConfig


def from_environment(monkeypatch, **variables):
    for name, value in {"EMBED_CHECKPOINT": "folder", **variables}.items():
        monkeypatch.setenv(name, value)
    return EmbedderConfig.from_environment()


def test_from_the_environment(monkeypatch):
    config = from_environment(monkeypatch, EMBED_POOLING="mean", EMBED_MAX_PIXELS="", EMBED_NORMALIZE="false")
    assert (config.pooling, config.max_pixels, config.normalize) == ("mean", None, False)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("EMBED_POLING", "mean", "EMBED_POLING: no such setting"),
        ("embed_poling", "mean", "embed_poling: no such setting"),
        ("EMBED_POOLING", "max", "EMBED_POOLING: Input should be .*, not 'max'"),
        ("EMBED_DTYPE", "float16", "EMBED_DTYPE: "),  # overflows to NaN in Qwen3-class models
        ("EMBED_DEVICE", "gpu", "EMBED_DEVICE: "),
        ("EMBED_MAX_PIXELS", "many", "EMBED_MAX_PIXELS: "),
        ("EMBED_CHECKPOINT", "", "EMBED_CHECKPOINT must be set"),
        ("EMBED_MIN_PIXELS", "4096000", "EMBED_MIN_PIXELS .* is above EMBED_MAX_PIXELS"),
    ],
)
def test_refused_by_name(monkeypatch, name, value, words):
    with pytest.raises(ValueError, match=words):
        from_environment(monkeypatch, **{"EMBED_MAX_PIXELS": "409600", name: value})


def test_each_gpus_instance_computes_there():
    config = EmbedderConfig(checkpoint="any")
    assert [config.on_gpu(own, 2).device for own in range(2)] == ["cuda:0", "cuda:1"]
    cpu = config.model_copy(update={"device": "cpu"})
    assert cpu.on_gpu(0, 1) == cpu
    for device in ("cpu", "cuda:1"):  # two would be in one place
        with pytest.raises(ValueError, match=f"EMBED_DEVICE={device}: each of 2 GPUs .* CUDA_VISIBLE_DEVICES"):
            config.model_copy(update={"device": device}).on_gpu(1, 2)
