#!/usr/bin/env bash
# Install the project as a package with the locked versions: install.sh SOURCE PREFIX cpu|cuda [INDEX_OF_TORCH]
set -euo pipefail
source=$1 prefix=$2 variant=$3 index=${4:-}
[[ $variant == cpu || $variant == cuda ]] || { echo "VARIANT: $variant: must be cpu or cuda" >&2; exit 2; }

# pip compiles what it installs: in a pod the root is read-only, and a process would compile every module it imports.
python3 -m venv "$prefix"
pip=("$prefix/bin/python" -m pip install --no-cache-dir --disable-pip-version-check
     --constraint "$source/k8s/image/constraints.txt")
[[ -z $index ]] || "${pip[@]}" --extra-index-url "$index" torch
"${pip[@]}" "$source"

"$prefix/bin/python" - "$variant" <<'PY'
import sys
import torch
cuda = torch.version.cuda is not None
if cuda != (sys.argv[1] == "cuda"):
    sys.exit(f"VARIANT={sys.argv[1]}, but torch {torch.__version__} is {'a CUDA' if cuda else 'a CPU'} build; set TORCH_INDEX")
PY
