"""`python -m qwen3_vl_embed.serving`: serve in the foreground until Ctrl-C or SIGTERM. `make serve` runs this."""

import signal
import sys
from typing import TextIO, cast

from rich.text import Text

from qwen3_vl_embed.serving.console import Console
from qwen3_vl_embed.serving.logs import Unfailing
from qwen3_vl_embed.serving.settings import ServeSettings, ServingError, checkpoint
from qwen3_vl_embed.serving.stack import Stack

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
HOW = """   (docs: {url}/docs, stop: Ctrl-C)

  curl {url}/txt/embed -H 'content-type: application/json' -d '{{"input": "red"}}'
  qwen3-vl-embed validate --url {url}
"""


def banner(checkpoint: str, url: str) -> Text:
    """What is served, where, and how to ask it."""
    return Text.assemble(("\nServing " + checkpoint, "bold green"), " at ", (url, "bold"), HOW.format(url=url))


def main() -> int:
    """Exit status: 0 when stopped, 1 when it could not be served."""
    console = Console(file=cast(TextIO, Unfailing(sys.stderr)))
    for sign in STOP_SIGNALS:  # SIGINT too: a shell starts background jobs with it ignored
        signal.signal(sign, signal.default_int_handler)
    stack = None
    try:
        stack = Stack(ServeSettings.from_environment(), checkpoint(), console)
        stack.start()
        console.print(banner(stack.checkpoint, stack.url), soft_wrap=True)
        stack.watch()
    except ServingError as error:
        console.print(Text(str(error), "bold red"), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopping …")
    finally:
        for sign in STOP_SIGNALS:  # stopping takes seconds and is bounded; a second Ctrl-C would leave Triton behind
            signal.signal(sign, signal.SIG_IGN)
        if stack:
            stack.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
