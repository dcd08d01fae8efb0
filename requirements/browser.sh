#!/usr/bin/env bash
# Brings Debian's Chromium, in which the tests look at the report's page, where it is missing and can be installed.
# Without it those tests are skipped, and say so.
set -euo pipefail
if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "Chromium is missing: apt-get install chromium chromium-driver brings it; tests of the page are skipped" >&2
  exit 0
fi
echo "Installing Chromium"
log=$(mktemp)
if ! { timeout 300 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq \
  --no-install-recommends chromium chromium-driver fonts-dejavu-core; } >"$log" 2>&1; then
  tail -n 5 "$log" >&2
  echo "Chromium could not be installed; tests of the page are skipped" >&2
fi
rm -f "$log"
