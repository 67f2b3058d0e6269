"""`lightning-da new`: a project of your own that depends on this package."""

import importlib.util
import json
import keyword
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import distribution
from pathlib import Path
from shlex import quote

import copier
import yaml
from copier.errors import CopierError

from lightning_da.errors import ConfigError, list_choices
from lightning_da.parser import CommandParser
from lightning_da.paths import CONF, PACKAGE, PROJECT

KINDS = {
    kind: text
    for kind, config, text in (
        ("images", "image_folders", "one folder of labelled images, fine-tuned"),
        ("pair-of-images", "image_folders", "source and target folders of images, adapted"),
        ("features", "features", "source and target files of vectors, adapted"),
        ("speech", "speech", "speakers first, then emotions"),
        ("text", "sentences", "source and target tables of texts, adapted"),
        ("custom", "template", "a data module of your own"),
    )
    if (CONF / "data" / f"{config}.yaml").is_file()
}
"""Kinds of data whose configuration is there, and one line of help."""
ANSWERS = ".copier-answers.yml"
TAKEN = ("conf", "data", "example", "mlruns", "tests")
"""Names that mean something else in a project."""


def run(args: Sequence[str]) -> None:
    """Writes a new project.

    Args:
        args: The arguments after `new`.

    Raises:
        ConfigError: If the folder is not empty or cannot be written, or the name is no import path or taken.
    """
    parser = CommandParser(
        "lightning-da new",
        description="Write a project for your data that depends on this package; its tests and its demo run at once.",
        epilog="kinds: " + "; ".join(f"{kind}: {text}" for kind, text in KINDS.items()),
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a new or empty folder")
    parser.add_argument("--kind", metavar="KIND", help=f"required: {', '.join(KINDS)}")
    parser.add_argument("--name", help="name of the project in Python (default: the name of the folder)")
    given = parser.parse_args(args)
    if given.kind is None:
        raise ConfigError(f"new: give the kind of data with --kind; {list_choices('', KINDS)}")
    if given.kind not in KINDS:
        raise ConfigError(f"kind: {given.kind!r} is not a valid choice; {list_choices(given.kind, KINDS)}")
    folder = given.path.expanduser().resolve()
    name = given.name or re.sub(r"[\s-]", "_", folder.name.lower())
    _check_name(name)
    try:
        _check_empty(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        there = folder.is_dir()  # it stays, since a shell may stand in it
        with tempfile.TemporaryDirectory(dir=folder if there else folder.parent) as place:
            part = Path(place) / "project"
            _render(part, {"kind": given.kind, "name": name})
            for path in part.iterdir() if there else ():
                path.rename(folder / path.name)
            if not there:
                part.rename(folder)
    except (OSError, CopierError) as error:
        raise ConfigError(f"{given.path}: the project cannot be written ({error})") from error
    here = Path.cwd()
    shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
    activate = Path(sys.prefix, "bin", "activate")
    inactive = activate.is_file() and os.environ.get("VIRTUAL_ENV") != sys.prefix
    steps = [f"source {quote(str(activate))}"] * inactive + [f"cd {quote(str(shown))}", "make test", "make demo"]
    print("\n  ".join([f"{shown} is ready; its README says what to edit\n", *steps]))


def _check_name(name: str) -> None:
    """Refuses a name that Python cannot import, or that imports something else."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"name: {name!r} is no import path of Python; give --name with small letters, digits and _, my_task for "
            "example"
        )
    spec = importlib.util.find_spec(name)
    if name in TAKEN or (spec is not None and spec.origin is not None):
        raise ConfigError(
            f"name: {name!r} is taken by a package or a folder; give another --name, my_{name} for example"
        )


def _check_empty(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder}: it is there and not an empty folder; name a new folder")


def _render(folder: Path, answers: dict[str, str]) -> None:
    """Writes the files of a project into a new folder, and the origin of its answers."""
    requirement, origin = _origin()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)  # the repository, as far as copier needs it: a wheel has another layout
        template = root / "lightning_da" / "project_template"
        shutil.copytree(PACKAGE / "project_template", template)
        for source, path in ((PACKAGE, "lightning_da/data/template.py"), (CONF, "conf/data/template.yaml")):
            (root / path).parent.mkdir(parents=True)
            shutil.copy(source.joinpath(*Path(path).parts[1:]), root / path)
        shutil.copy(template / "copier.yml", root)
        copier.run_copy(place, folder, {**answers, "requirement": requirement}, defaults=True, quiet=True)
    file = folder / ANSWERS
    header, _, text = file.read_text().partition("\n")
    kept = {key: value for key, value in yaml.safe_load(text).items() if key[0] != "_"}
    file.write_text(f"{header}\n{yaml.safe_dump(origin | kept, width=1000)}")


def _origin() -> tuple[str, dict[str, str]]:
    """Where this package comes from: what pip installs it by, and what `copier update` reads."""
    if PROJECT != PACKAGE:
        origin = {"_src_path": str(PROJECT)}
        described = ["git", f"--git-dir={PROJECT / '.git'}", "describe", "--tags", "--always"]
        with suppress(OSError, subprocess.CalledProcessError):  # a copy without git, which cannot update
            origin["_commit"] = subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
        return f"lightning-da @ {PROJECT.as_uri()}", origin
    installed = distribution("lightning_da")
    direct = json.loads(installed.read_text("direct_url.json") or "{}")
    if "vcs_info" in direct:
        url, commit = direct["url"], direct["vcs_info"]["commit_id"]
        return f"lightning-da @ git+{url}@{commit}", {"_commit": commit, "_src_path": url}
    requirement = f"lightning-da @ {direct['url']}" if "url" in direct else f"lightning-da~={installed.version}"
    return requirement, {"_commit": f"v{installed.version}"}
