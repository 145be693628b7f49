#!/bin/sh
# Install this package into a virtual environment: tools/install.sh PYTHON FOLDER PACKAGE [MORE...], such as python3 .venv '.[dev]'
# A line every few seconds says that it goes on, for pip is silent while it unpacks.
set -eu
python=$1 folder=$2 package=$3
shift 3  # what is left are further packages
begun=$(date +%s)
tell() { echo "[$(($(date +%s) - begun)) s] $*"; }
tick() { while sleep 4 >/dev/null 2>&1; do tell "still installing"; done; }

tick &
ticker=$!
trap 'kill "$ticker" 2>/dev/null' EXIT
trap 'exit 130' INT TERM
tell "make the environment $folder"
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
tell "install $package and what it needs"
# Modules are compiled when they are first imported: most of them never are.
"$folder/bin/python" -m pip install --disable-pip-version-check --no-compile --progress-bar on \
  --constraint constraints.txt --editable "$package" "$@"
tell "import it once, which compiles what is used"
"$folder/bin/python" -c "import sklearn.datasets" &  # beside the other half, on a second core
scikit=$!
"$folder/bin/python" -c "import selfdistill.experiments.run, torch._dynamo"
wait "$scikit"
tell "installed"
