#!/usr/bin/env sh
# Chromium and its driver from Debian, for tests/services; says what to do where it may not install them.
set -eu
if [ -x /usr/bin/chromium ] && [ -x /usr/bin/chromedriver ]; then exit 0; fi
if [ "$(id -u)" != 0 ]; then
    echo "tests/services need chromium and chromedriver: sudo apt-get install chromium chromium-driver" >&2
    exit 1
fi
apt-get update -q
apt-get install -q -y --no-install-recommends chromium chromium-driver
