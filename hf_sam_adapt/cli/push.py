"""`hf-sam-adapt push`."""

from __future__ import annotations

from ..errors import UserError
from ..hub.push import push_folder
from ..hub.space import push_space
from .arguments import PushArguments


def push_command(args: PushArguments) -> None:
    """Publish a folder, and print where."""
    if args.folder is None:
        raise UserError("push needs the folder to publish, such as a run's output_dir")
    if args.repo_type == "space":
        push_space(args.folder, args.repo, private=not args.public, revision=args.revision, sdk=args.space_sdk)
        return
    address = push_folder(args.folder, args.repo, private=not args.public, revision=args.revision)
    repo = "/".join(address.partition("/commit/")[0].split("/")[-2:])
    print(f"Next: hf-sam-adapt predict IMAGES --adapter {repo}")
