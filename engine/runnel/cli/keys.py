"""`runnel keys`: make key files for a daemon or a client."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..wire.keys import Secret, read_public, write

HELP = "make a key pair for a daemon that is reached over a network, or for a client of one"

_EXAMPLE = """examples:
  runnel keys new daemon                        # on the daemon's machine
  runnel keys new mic-1 --server daemon.pub     # on a client's

A user is the name before the key in the daemon's list. Who holds the key is that user, and has the user's
streams. To let a client in: append the line of its .pub file to the list, and send SIGHUP to the daemon. To
strike it off: remove the line, and send SIGHUP. A user with several keys: "mic-1" = ["KEY", "KEY"].
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLE
    parser.add_argument("action", choices=["new"], help="make NAME.key, the secret, and NAME.pub")
    parser.add_argument("name", metavar="NAME", help="the user's name: printable, without '/', 64 at most")
    parser.add_argument(
        "--server", type=Path, metavar="DAEMON.pub", help="the daemon that this client talks to"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(), metavar="DIR", help="where to make them (here)"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 0 once both files are written. Raises UsageError; an existing file is not changed."""
    from ..wire.curve import new_pair

    server = read_public(args.server) if args.server else ""
    public, secret = new_pair()
    private, shown = write(args.folder, args.name, public, Secret(secret, server))
    if args.quiet:
        return 0
    print(f"{private}: the secret key. It stays on this machine; mode 0600.")
    print(f"{shown}: the public key, for the other end.")
    if server:
        print(f"next: append {shown.name} to the daemon's list of users, send it SIGHUP, then:")
        print(f"  runnel feed tcp://HOST:PORT INPUT --keys {private}")
    else:
        print("next, for a daemon, in its pipeline file; then give its clients the public key:")
        print(f'  [serve]\n  keys = "{private}"\n  authorised = "users.toml"')
        print("for a client: make its key with --server DAEMON.pub, so that it knows the daemon")
    return 0
