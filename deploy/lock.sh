#!/bin/sh
# lock.sh BIN: upgrade the environment to the newest releases that pyproject.toml allows and write requirements.txt.
set -eu
bin=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$bin/python" - <<'PYTHON' > "$work/wanted"
import pathlib, tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"]["dev"]))
PYTHON
"$bin/python" -m pip install --quiet --upgrade --upgrade-strategy eager -r "$work/wanted"
{
    sed -n '/^#/p' requirements.txt
    "$bin/python" -m pip freeze --exclude pip --exclude setuptools | sort -f
} > "$work/lock"
cp "$work/lock" requirements.txt
