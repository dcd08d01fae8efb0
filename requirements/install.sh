#!/usr/bin/env bash
# Makes the virtual environment DIR hold exactly what the given requirement files pin, and the project itself.
# Does nothing when it already does: a stamp in DIR names the hash of the files that it was made from.
#
# Usage: requirements/install.sh DIR FILE...
set -euo pipefail

torchvision_operators=testbed/sglang_cpu/torchvision_operators.py

main() {
  local environment=$1
  shift
  local python stamp
  python=$(find_python)
  # Modules that were built from other sources are not loaded: all C sources count, by name and content.
  local compiled
  compiled=$(find patcher dumper comparator tensortap -name '*.[ch]' | LC_ALL=C sort)
  stamp="$environment/.made-from-$({
    echo "$compiled"
    # shellcheck disable=SC2086
    cat "$0" pyproject.toml setup.py $compiled "$torchvision_operators" "$@"
  } | sha256sum | cut -c1-16)"
  if [ -e "$stamp" ] && "$environment/bin/python" -c '' 2>/dev/null; then
    return
  fi
  echo "Setting up $environment (2 GB, a few minutes the first time)"
  if ! "$environment/bin/python" -c '' 2>/dev/null; then
    "$python" -m venv --clear "$environment"
  fi
  rm -f "$environment"/.made-from-*
  local files=()
  for file in "$@"; do
    files+=(-r "$file")
  done
  quiet_pip "$environment" install --quiet --disable-pip-version-check --no-deps "${files[@]}"
  quiet_pip "$environment" install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
  add_torchvision_operators "$environment"
  touch "$stamp"
}

# The published torchvision cannot be imported beside a torch for CPUs without what this module declares.
add_torchvision_operators() {
  local packages
  packages=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  if [ -d "$packages/torchvision" ]; then
    cp "$torchvision_operators" "$packages/"
    echo "import torchvision_operators" >"$packages/torchvision_operators.pth"
  fi
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.11 is needed for development (the pins are for it) and was not found;" \
    "install it or name it: make PYTHON=/path/to/python3.11 …" >&2
  return 1
}

# pip warns once per package about each local package folder that lacks it. That is no news; all else is shown.
quiet_pip() {
  local environment=$1
  shift
  "$environment/bin/python" -m pip "$@" \
    2> >(grep -v -e "is ignored: it is neither a file nor a directory" >&2 || true)
}

main "$@"
