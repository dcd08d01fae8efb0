#!/usr/bin/env bash
# Brings what some tests need of Debian where it is missing and can be installed: Chromium, in which they look at the
# report's page, and QEMU, which is an older processor to them. Without one its tests are skipped, and say so.
set -euo pipefail

main() {
  need chromium chromium chromium-driver fonts-dejavu-core
  need qemu-x86_64 qemu-user
}

need() { # PROGRAM PACKAGE...
  local packages=("${@:2}")
  if command -v "$1" >/dev/null; then
    return
  fi
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "$1 is missing: apt-get install ${packages[*]} brings it; the tests that need it are skipped" >&2
    return
  fi
  echo "Installing ${packages[*]}"
  log=${log:-$(mktemp)}
  if ! { up_to_date && DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq --no-install-recommends \
    "${packages[@]}"; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "${packages[*]} could not be installed; the tests that need it are skipped" >&2
  fi
}

up_to_date() { # once
  ${updated:-false} || timeout 300 apt-get update -qq
  updated=true
}

trap 'rm -f "${log:-}"' EXIT
main
