"""Private names of libraries that the product uses, each with an upper bound in pyproject.toml.

Other tests fail too when one moves, each in its own way; this one says which.
"""

import inspect
import socket
from io import BytesIO

from granian.net import SocketHolder  # type: ignore[attr-defined]
from granian.server import MPServer
from PIL import Image
from PIL._avif import AvifDecoder
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel


def test_granian_takes_its_socket_from_two_methods_and_gives_it_to_workers():
    """client/server.py, `Server`."""
    assert {"_init_shared_socket", "_drop_shared_socket"} <= vars(MPServer).keys()
    assert "((self._ssp, self._shd), self._sso)" in inspect.getsource(MPServer)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert SocketHolder(listening.fileno(), False, 1).get_fd() == listening.fileno()


def test_transformers_adds_an_images_features_by_one_method():
    """embedder/forward/model.py puts its own in place."""
    parameters = inspect.signature(Qwen3VLTextModel._deepstack_process).parameters
    assert list(parameters) == ["self", "hidden_states", "visual_pos_masks", "visual_embeds"]
    assert "self._deepstack_process(" in inspect.getsource(Qwen3VLTextModel.forward)


def test_pillow_has_libavifs_decoder():
    """embedder/prepare/images/avif.py."""
    file = BytesIO()
    Image.new("RGB", (4, 3)).save(file, "AVIF")
    size, *_ = info = AvifDecoder(file.getvalue(), "auto", 1).get_info()
    assert (size, len(info)) == ((4, 3), 7)
