"""The command line of the engine side: ``python -m engine_adapter demo`` and ``serve``.

Owns: flags and exit codes.
Knows nothing about: models, routes. It imports nothing heavy before it knows what to do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine_adapter.serve.command import add_flags, load_settings, run_server
from maskd.errors import MaskdError

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0 fine, 1 invalid output, 2 bad usage or no daemon, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="engine_adapter", description="The engine side of maskd.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="decode four sequences with different grammars in one batch")
    demo.add_argument("--model", type=Path, help="a local Hugging Face model directory (default: the bundled model)")
    demo.add_argument("--target", help="a running daemon, unix:/path or host:port (default: start one)")
    demo.add_argument("--seed", type=int, default=4, help="of the sampling (default: %(default)s)")
    add_flags(
        commands.add_parser("serve", help="answer the clients of OpenAI, LoRAX, Ollama, Mistral and others over HTTP")
    )
    arguments = parser.parse_args(argv)
    if arguments.command == "serve":
        return _serve(arguments)
    from rich.console import Console

    console = Console()
    with console.status("importing torch"):
        from engine_adapter.demo import run_demo
    try:
        return run_demo(console, model_path=arguments.model, target=arguments.target, seed=arguments.seed)
    except (MaskdError, ValueError, OSError) as error:
        print(f"engine_adapter: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        return 130


def _serve(arguments: argparse.Namespace) -> int:
    try:
        return run_server(load_settings(vars(arguments), arguments.config))
    except (MaskdError, ValueError, OSError) as error:
        print(f"engine_adapter: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
