"""What is written agrees: config.pbtxt, model.py, the adapter, the settings' documentation, the README."""

import re
import struct
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from typer.core import TyperGroup
from typer.main import get_command

from client.http.schemas import ImageRequest, TextRequest
from client.items import WARNINGS
from client.settings import Settings
from embedder import EmbedderConfig, Options, Warnings
from lab.options import made
from qwen3_vl_embed.cli.__main__ import app
from qwen3_vl_embed.serving.settings import ROOT, ServeSettings

MODEL = Path("model_repository/qwen3_vl_embed")
CONFIG = text_format.Parse((MODEL / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
SETTINGS = {"ADAPTER_": Settings, "SERVE_": ServeSettings}


def test_the_wire_contract():
    assert [(i.name, i.data_type, list(i.dims)) for i in CONFIG.input] == [
        (name, model_config_pb2.TYPE_STRING, [1]) for name in ("text", "image", "options")
    ]
    assert [(o.name, o.data_type, list(o.dims)) for o in CONFIG.output] == [
        ("embedding", model_config_pb2.TYPE_FP32, [-1]),
        ("tokens", model_config_pb2.TYPE_INT32, [1]),
        ("model", model_config_pb2.TYPE_UINT8, [8]),
        ("recipe", model_config_pb2.TYPE_UINT8, [6]),
        ("timings", model_config_pb2.TYPE_FP32, [2]),
        ("batch_items", model_config_pb2.TYPE_INT32, [1]),
        ("warnings", model_config_pb2.TYPE_UINT32, [1]),
        ("json", model_config_pb2.TYPE_UINT8, [-1]),
    ]
    assert model_config_pb2.TYPE_STRING not in {o.data_type for o in CONFIG.output}  # classification ends Triton 2.51
    assert not any(i.optional for i in CONFIG.input)  # an optional input would keep texts and images apart
    assert CONFIG.HasField("dynamic_batching")
    assert not CONFIG.dynamic_batching.HasField("default_queue_policy")  # 500 ms stalls on 2.51: docs/log.md
    assert not CONFIG.response_cache.enable
    assert [group.kind for group in CONFIG.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_AUTO]


def test_every_number_of_the_wire_contract_has_its_reason():
    lines = (MODEL / "config.pbtxt").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s*(max_|instance_group)", line):
            assert lines[number - 1].lstrip().startswith("#"), line


def test_warm_up_is_a_text():
    assert [warmup.name for warmup in CONFIG.model_warmup] == ["text"]
    contents = {}
    for warmup in CONFIG.model_warmup:
        assert set(warmup.inputs) == {"text", "image", "options"}
        for value in warmup.inputs.values():
            data = (MODEL / "warmup" / value.input_data_file).read_bytes()
            assert struct.unpack("<I", data[:4]) == (len(data) - 4,)  # one BYTES element
            contents[value.input_data_file] = data[4:]
    assert contents["empty"] == b""
    assert contents["text"].decode()


@pytest.mark.parametrize("prefix", SETTINGS)
def test_settings_are_documented_with_their_defaults(prefix):
    rows = re.findall(rf"^\| `({prefix}\w+)` \| (.*?) \| (.+?) \|$", Path("docs/settings.md").read_text(), re.M)
    documented = {name: default for name, default, _ in rows}
    actual = {}
    for name, field in SETTINGS[prefix].model_fields.items():
        value = field.get_default(call_default_factory=True, validated_data={"port": 8001})
        actual[prefix + name.upper()] = "required" if field.is_required() else "unset" if value is None else str(value)
    assert documented == actual


@pytest.mark.parametrize("path", made(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_made_of_the_table_of_options_is_fresh(path):
    assert path.read_text() == made()[path], "run `make options`"


def test_every_door_takes_the_options_of_the_table_by_their_rules():
    options = set(Options.model_fields) - {"render", "describe"}  # which the adapter asks for on its own
    fields = set(ImageRequest.model_fields) - {"input", "content", "text"}
    assert fields - {"model", "encoding_format", "dtype"} == options
    assert options - set(TextRequest.model_fields) == {"min_pixels", "max_pixels", "image_at"}
    shared = options - {"image_at"}  # an input's own: where its image stands in its text
    assert shared < set(EmbedderConfig.model_fields)
    assert {name for command in ("embed", "report") for name in flags(command)} >= shared
    published, own = (each.model_json_schema()["properties"] for each in (ImageRequest, Options))
    for name in options:
        assert published[name] == own[name]


def flags(command: str) -> set[str]:
    """What a command of the command line is called with."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    return {str(parameter.name) for parameter in group.commands[command].params}


def test_each_warning_has_its_sentence():
    assert WARNINGS.keys() == {warning.value for warning in Warnings if warning}
    assert all(f"| {bit} | {sentence} |" in Path("docs/api.md").read_text() for bit, sentence in WARNINGS.items())


@pytest.mark.parametrize(("page", "example"), [("README.md", "adapter.py"), ("docs/api.md", "triton_grpc.py")])
def test_the_pages_show_the_examples_that_are_run(page, example):
    assert f"```python\n{(Path('examples') / example).read_text()}```" in Path(page).read_text()


def test_the_tests_that_keep_a_promise_exist():
    promises = Path("docs/reliability.md").read_text()
    for cells in re.findall(r"`(?:tests/)?(test_\w+\.py)::(\w+)`((?:, `::\w+`)*)", promises):
        file, names = cells[0], [cells[1], *re.findall(r"`::(\w+)`", cells[2])]
        source = (Path("tests") / file).read_text()
        assert [name for name in names if f"def {name}(" not in source] == []
    assert len(re.findall(r"`::?test_|\.py::test_", promises)) > 20
    assert not re.findall(r"`(?!::)[^`|]*…::", promises)


@pytest.mark.parametrize(
    "page", [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(Path("docs").glob("*.md"))], ids=str
)
def test_pages_name_only_files_that_exist(page):
    links = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
    for link, heading in re.findall(r"\]\(([^)#:]*\.md)#([^)]+)\)", page.read_text()):
        headings = re.findall(r"^#+ (.*)$", (page.parent / link).read_text(), re.M)
        assert heading in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings], (link, heading)
