"""`python -m qwen3_vl_embed.serving`: serve in the foreground until Ctrl-C or SIGTERM. `make serve` runs this."""
# ruff: noqa: E402

import signal

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
if __name__ == "__main__":  # they wait until `main` is ready for them: imports take a second
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

import sys
from typing import TextIO, cast

from rich.text import Text

from qwen3_vl_embed.serving.console import Console
from qwen3_vl_embed.serving.logs import Unfailing
from qwen3_vl_embed.serving.settings import ServeSettings, ServingError, checkpoint
from qwen3_vl_embed.serving.stack import Stack

HOW = """   (docs: {url}/docs, stop: Ctrl-C)

  curl {url}/txt/embed -H 'content-type: application/json' -d '{{"input": "red"}}'
  qwen3-vl-embed validate --url {url}
"""


def banner(checkpoint: str, url: str) -> Text:
    """What is served, where, and how to ask it."""
    return Text.assemble(("\nServing " + checkpoint, "bold green"), " at ", (url, "bold"), HOW.format(url=url))


def main() -> int:
    """Exit status: 0 when stopped, 1 when it could not be served, 128 and the signal when stopped before it served."""
    console = Console(file=cast(TextIO, Unfailing(sys.stderr)))
    stack, told, serves = None, list[int](), False

    def heed(number: int, _: object) -> None:
        """Only a note, and any number of them: an exception could come between a process's start and our list of it."""
        told.append(number)
        if stack:
            stack.stopping = True

    for sign in STOP_SIGNALS:  # SIGINT too: a shell starts background jobs with it ignored
        signal.signal(sign, heed)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        stack = Stack(ServeSettings.from_environment(), checkpoint(), console)
        stack.stopping = bool(told)
        stack.start()
        if serves := not stack.stopping:
            console.print(banner(stack.checkpoint, stack.url), soft_wrap=True)
        stack.watch()
        console.print("stopping …")
    except ServingError as error:
        console.print(Text(str(error), "bold red"), soft_wrap=True)
        return 1
    finally:
        if stack:
            stack.stop()
    return 0 if serves else 128 + told[0]


if __name__ == "__main__":
    sys.exit(main())
